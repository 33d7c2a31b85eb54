"""The command line: ``studio VERB ...``.

Bare ``--help`` and ``--version`` answer from the table below; whatever a verb needs is imported when it is called.
"""

import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from studio import __version__

OK, FAILED, BAD_USAGE, SOME_FAILED = 0, 1, 2, 3

VERBS: dict[str, str] = {
    "generate": "Make a textured GLB from a prompt",
    "batch": "Make what every line of a file asks for; start it again and it goes on",
    "edit": "Change a finished run's object by another prompt",
    "resume": "Go on with a run that was stopped or killed",
    "export": "Write a finished run's object as GLB, OBJ, STL, PLY or gaussians, at any size",
    "worker": "Do queued jobs, one after the other, on one device",
    "jobs": "List jobs; pause, resume, cancel or retry them; rebuild their store",
    "cite": "Print BibTeX of what a run used",
    "ui": "Open the app in a browser",
    "evaluate": "Compare methods or recipes with the known truth of their prompts",
    "bench": "Time the kernels here, next to their plain-torch forms",
    "doctor": "Examine the installation and say what is missing",
    "train-prior": "Train the bundled prior anew",
    "distill-guidance": "Teach a prior to guide in one pass instead of two",
}

EXAMPLES = """\
  1. A first object, ready in minutes on a laptop:   studio generate "a green table"
  2. More patience, more detail:                     studio generate "an orange car" --recipe standard
  3. Another prior, from a folder:                   studio generate "a fox" --prior ~/models/stable-diffusion-v1-5
  4. All knobs of a recipe:                          studio generate "a mug" --recipe draft --help
  5. After Ctrl-C or a crash:                        studio resume runs/a-green-table
  6. Another colour for what is there:               studio edit runs/a-green-table "a red table"
  7. Whom to cite for it:                            studio cite runs/a-green-table
  8. Which method is best, and at what cost:         studio evaluate --methods SDS VSD ISM
  9. All of it in a browser, with a queue:           studio ui
 10. Many prompts from a file, overnight:            studio batch prompts.txt --seeds 0 1 2
 11. For a printer, or lighter for a game:           studio export runs/a-green-table --format stl --faces 3000"""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of ``studio``; exits with 0, 1 (failed), 2 (bad usage) or 3 (some of several failed)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode shows a letter's number, and nothing fails
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Carry out a command line and return the exit status."""
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help"):
        _say(_help())
        return OK
    if verb in ("-V", "--version"):
        _say(f"dreamkiln {__version__}")
        return OK
    if verb not in VERBS:
        return _refuse_verb(verb)
    _be_a_good_neighbour()
    try:
        return _function(verb)(rest)
    except KeyboardInterrupt:
        _complain("Interrupted.")
        return FAILED
    except SystemExit as end:  # tyro leaves this way, with 2 for bad usage and 0 for help
        return end.code if isinstance(end.code, int) else FAILED


def _be_a_good_neighbour() -> None:
    """Let waiting threads sleep soon; read when torch is imported, which is later.

    GNU OpenMP lets them spin for milliseconds by default. With any other program at work on the same cores, threads
    then wait for one that is waiting for a core: a step of ``draft`` took over 1 s instead of 45 ms on two cores. With
    this limit it takes 0.14 s then, and no longer than before on an idle machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _function(verb: str) -> Callable[[list[str]], int]:
    if verb == "generate":
        from studio.verbs import generate as function
    elif verb == "batch":
        from studio.batch.command import batch as function
    elif verb == "edit":
        from studio.verbs import edit as function
    elif verb == "export":
        from studio.export.command import export as function
    elif verb == "worker":
        from studio.jobs.command import worker as function
    elif verb == "jobs":
        from studio.jobs.command import jobs as function
    elif verb == "cite":
        from studio.verbs import cite as function
    elif verb == "ui":
        from studio.app.command import ui as function
    elif verb == "resume":
        from studio.verbs import resume as function
    elif verb == "evaluate":
        from studio.verbs import evaluate as function
    elif verb == "bench":
        from studio.verbs import bench as function
    elif verb == "doctor":
        from studio.verbs import doctor as function
    elif verb == "distill-guidance":
        from studio.verbs import distill_guidance as function
    else:
        from studio.verbs import train_prior as function
    return function


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {about}" for name, about in VERBS.items())
    return (
        "usage: studio VERB [options]\n\n"
        "Dreamkiln: a prompt goes in, score distillation makes a textured GLB.\n\n"
        f"verbs:\n{verbs}\n\nexamples:\n{EXAMPLES}\n\n"
        "`studio VERB --help` explains a verb. --version prints the version."
    )


def _refuse_verb(verb: str) -> int:
    import difflib

    near = difflib.get_close_matches(verb, VERBS, 1)
    guess = f"Did you mean `studio {near[0]}`?" if near else f"There are: {', '.join(VERBS)}."
    _complain(f"studio: no verb {verb!r}. {guess}")
    return BAD_USAGE


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _complain(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
