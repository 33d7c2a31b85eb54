"""CUDA programs that tests write."""

from dataclasses import dataclass
from pathlib import Path

from cuda_ext.cuda import Program


@dataclass(frozen=True)
class OwnProgram(Program):
    """A program outside the package."""

    folder: Path = Path()

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.cu"
