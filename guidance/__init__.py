"""Guidance: how should these renders change? Priors, conditions and score-distillation methods."""

from guidance.asd import ASD
from guidance.bsd import BSD
from guidance.cds import CDS
from guidance.csd import CSD
from guidance.dds import DDS
from guidance.dsd import DSD
from guidance.fvsd import FVSD
from guidance.ism import ISM
from guidance.jsd import JSD
from guidance.methods import AnyGuidance
from guidance.nfsd import NFSD
from guidance.pds import PDS
from guidance.sdi import SDI
from guidance.sds import SDS
from guidance.sjc import SJC
from guidance.ucm import UCM
from guidance.vsd import VSD

__all__ = [
    "ASD",
    "BSD",
    "CDS",
    "CSD",
    "DDS",
    "DSD",
    "FVSD",
    "ISM",
    "JSD",
    "NFSD",
    "PDS",
    "SDI",
    "SDS",
    "SJC",
    "UCM",
    "VSD",
    "AnyGuidance",
]
