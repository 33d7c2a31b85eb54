"""The method that the README writes out is a method."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from guidance import CSD
from guidance.contract import Guidance
from guidance.testing import oracle_gradient

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_example_of_a_method_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = re.search(
        r"```python\n(\"\"\"Score distillation against.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
    )
    assert code is not None and code[1].count("\n") < 40
    (tmp_path / "mine.py").write_text(code[1], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mine", module)
    spec.loader.exec_module(module)
    knobs = module.Mine()
    assert isinstance(knobs, Guidance)
    pull = oracle_gradient(CSD(), z0=-1.0, n=0.3, t=300)
    assert oracle_gradient(knobs, z0=-1.0, n=0.3, t=300) == pytest.approx(7.5 * pull, rel=1e-9)
