"""A batch is shown, and held, whatever others do meanwhile."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from studio.batch.settling import held
from studio.batch.showing import Bars, Meter
from studio.folder import RunError
from studio.jobs.store import Item, Store
from studio.recipes import RECIPES


def test_a_job_that_ends_and_is_taken_off_the_list_between_two_looks(runs: Path) -> None:
    store, said = Store(runs), io.StringIO()
    (id,) = store.submit(RECIPES["draft"]("", True), [Item("a mug", 0)], batch="mugs", limit=1)
    with Bars(store, "mugs", Meter(store, "mugs", frozenset({"a-mug"}), {}), Console(file=said)) as bars:
        claim = store.claim("w")
        assert claim is not None
        bars.update(at_once=True)
        with claim:
            claim.failed("No.")
        store.clear(id)
        bars.update(at_once=True)
    assert "0 done" in said.getvalue()


def test_what_another_file_says_is_not_taken_for_another_batch(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="write could not complete"), held(tmp_path):
        raise BlockingIOError("write could not complete without blocking")
    with held(tmp_path), pytest.raises(RunError, match="Another `studio batch` works"), held(tmp_path):
        pass
