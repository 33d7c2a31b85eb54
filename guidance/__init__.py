"""Guidance: how should these renders change? Priors, conditions and score-distillation methods."""

from guidance.asd import ASD
from guidance.cds import CDS
from guidance.csd import CSD
from guidance.dds import DDS
from guidance.ism import ISM
from guidance.jsd import JSD
from guidance.methods import AnyGuidance
from guidance.nfsd import NFSD
from guidance.pds import PDS
from guidance.sdi import SDI
from guidance.sds import SDS
from guidance.sjc import SJC

__all__ = ["ASD", "CDS", "CSD", "DDS", "ISM", "JSD", "NFSD", "PDS", "SDI", "SDS", "SJC", "AnyGuidance"]
