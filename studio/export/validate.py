"""Khronos' own validator, where it is installed: ``npm install gltf-validator``.

It is looked for in the ``node_modules`` folder that ``DREAMKILN_GLTF_VALIDATOR`` names, or else in ``./node_modules``.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

VARIABLE = "DREAMKILN_GLTF_VALIDATOR"
_SCRIPT = """
const [modules, asset] = process.argv.slice(1);
require(modules + "/gltf-validator").validateBytes(new Uint8Array(require("fs").readFileSync(asset)))
  .then(report => console.log(JSON.stringify(report.issues)), error => { console.error(error); process.exit(1); });
"""


def validate_glb(path: Path, timeout: float = 60.0) -> dict[str, int] | None:
    """Numbers of ``errors`` and ``warnings`` in a GLB; None where node or the validator is missing or fails."""
    node = shutil.which("node")
    modules = Path(os.environ.get(VARIABLE) or "node_modules").resolve()
    if node is None or not (modules / "gltf-validator").is_dir():
        return None
    try:
        command = [node, "-e", _SCRIPT, str(modules), str(path.resolve())]
        done = subprocess.run(command, check=True, timeout=timeout, capture_output=True, text=True)
        issues = json.loads(done.stdout)
        return {"errors": int(issues["numErrors"]), "warnings": int(issues["numWarnings"])}
    except (subprocess.SubprocessError, OSError, ValueError, KeyError):
        return None
