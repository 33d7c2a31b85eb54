"""All kinds of representation. To add one, write its file and add its dataclass here."""

from representations.hash_field import HashField
from representations.particles import Particles
from representations.splats import Splats

AnyRepresentation = HashField | Splats | Particles
