"""Types of options that may be left out: help shows a plain word for the value, and no default that says nothing."""

from pathlib import Path
from typing import Annotated

import tyro

File = Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
"""A file, as text; "" without it."""
Texts = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...", help_behavior_hint="")]
"""Any number of texts; none without it."""
Files = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE ...", help_behavior_hint="")]
"""Any number of files, as texts; none without it."""
Devices = Annotated[tuple[str, ...], tyro.conf.arg(metavar="DEVICE ...", help_behavior_hint="")]
"""Any number of devices; none without it."""
Folders = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDER ...", help_behavior_hint="")]
"""Any number of folders; none without it."""
MaybeName = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
MaybeText = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
MaybeNames = Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")]
MaybeNumber = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
MaybeNumbers = Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="N ...", help_behavior_hint="")]
MaybeSeconds = Annotated[float | None, tyro.conf.arg(metavar="SECONDS", help_behavior_hint="")]
MaybeSize = Annotated[str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="")]
MaybePath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Corners = Annotated[
    tuple[float, float, float, float, float, float] | None,
    tyro.conf.arg(metavar="X0 Y0 Z0 X1 Y1 Z1", help_behavior_hint=""),
]
