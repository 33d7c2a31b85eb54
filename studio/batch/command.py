"""``studio batch``: from the command line to the exit status."""

import sqlite3
from pathlib import Path

import tyro

from studio.batch.options import Batch
from studio.batch.planning import Draft, draft
from studio.batch.reading import read_entries
from studio.cli import BAD_USAGE, FAILED
from studio.folder import RunError
from studio.options import UsageError
from studio.verbs import complain, in_words


def batch(arguments: list[str]) -> int:
    """``studio batch``."""
    options, knobs = tyro.cli(Batch, args=arguments, prog="studio batch", return_unknown_args=True)
    from studio.batch.carrying import carry_out
    from studio.batch.rehearsal import rehearse
    from studio.jobs.quota import bytes_of
    from studio.jobs.store import StoreError

    try:
        drawn, (home, name) = _drawn(options, knobs), _home(options)
        quota = None if options.quota is None else bytes_of(options.quota)
    except (ValueError, OSError) as problem:
        return complain(in_words(problem) if isinstance(problem, OSError) else str(problem), BAD_USAGE)
    try:
        if options.dry_run:
            return rehearse(drawn, options, home, name)
        return carry_out(drawn, options, home, name, quota, arguments)
    except (RunError, UsageError) as problem:
        return complain(str(problem), BAD_USAGE)
    except (StoreError, sqlite3.Error) as problem:
        return complain(str(problem), FAILED)
    except OSError as problem:
        return complain(in_words(problem), FAILED)


def _drawn(options: Batch, knobs: list[str]) -> Draft:
    """What the file and the options come to.

    Raises:
        ValueError: what is wrong with them, in words.
        OSError: the file cannot be read.
    """
    _refuse_numbers(options)
    return draft(read_entries(options.file), options, knobs)


def _home(options: Batch) -> tuple[Path, str]:
    """The batch's folder and its name."""
    if options.file == "-":
        return options.out or Path("runs/stdin"), "stdin"
    file = Path(options.file)
    return options.out or Path("runs") / (file.stem.strip(". ") or "batch"), file.name


def _refuse_numbers(options: Batch) -> None:
    o = options
    checks = {
        f"--attempts must be 1 or more, not {o.attempts}": o.attempts >= 1,
        f"--workers must be between 1 and 256, not {o.workers}": o.workers is None or 1 <= o.workers <= 256,
        f"--timeout must be more than 0 seconds, not {o.timeout}": o.timeout is None or o.timeout > 0,
        "--seeds needs at least one": len(o.seeds) > 0,
        "--device needs at least one": len(o.device) > 0,
    }
    wrong = [f"{text}." for text, holds in checks.items() if not holds]
    if wrong:
        raise UsageError("\n".join(wrong))
