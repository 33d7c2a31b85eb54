"""The distillation methods there are: to add one, write a file and add its name to the union."""

from guidance.sds import SDS

AnyGuidance = SDS
