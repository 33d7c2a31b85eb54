"""``python -m tests.app.site HOME PRIOR``: the page without workers, until its input ends; says its address first.

Gradio leaves event loops open, which the tests would take for our own carelessness: it has a process to itself. Types
and shapes of our functions are checked there as in the tests.
"""

import sys
from pathlib import Path
from typing import Any

import tests.conftest  # noqa: F401  (switches the checks on, before anything of ours is imported)


def main(home: Path, prior: Path) -> None:
    """Serve."""
    from studio.app.server import serving

    def build(served: Path) -> Any:
        from studio.app.page import build_page
        from studio.app.service import Service
        from studio.app.shelf import Shelf

        return build_page(Service(home, {"toybox-64": "toybox-64", "tiny": str(prior)}), Shelf(served))

    def looks() -> dict[str, Any]:
        from studio.app.looks import launch_options

        return launch_options()

    with serving(build, home, port=0, looks=looks) as url:
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
