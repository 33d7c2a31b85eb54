"""The distillation methods there are: to add one, write a file and add its name to the union."""

from guidance.asd import ASD
from guidance.bsd import BSD
from guidance.cds import CDS
from guidance.csd import CSD
from guidance.dds import DDS
from guidance.dsd import DSD
from guidance.fvsd import FVSD
from guidance.ism import ISM
from guidance.jsd import JSD
from guidance.nfsd import NFSD
from guidance.pds import PDS
from guidance.sdi import SDI
from guidance.sds import SDS
from guidance.sjc import SJC
from guidance.ucm import UCM
from guidance.vsd import VSD

AnyGuidance = SDS | SJC | ASD | CDS | ISM | CSD | NFSD | VSD | DSD | BSD | FVSD | SDI | JSD | DDS | PDS | UCM
