"""All kinds of representation. To add one, write its file and add its dataclass here."""

from representations.hash_field import HashField

AnyRepresentation = HashField
