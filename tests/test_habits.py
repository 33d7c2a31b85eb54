"""Habits of the whole code base that no single module can check: imports, safety, docstrings, clean text."""

import ast
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("studio", "representations", "guidance", "cuda_ext")
HEAVY = {
    *("accelerate", "diffusers", "peft", "torchvision", "transformers"),
    *("fast_simplification", "manifold3d", "scipy", "skimage", "trimesh", "xatlas"),
    *("gradio", "ray"),
}
"""Packages that are imported inside the function that needs them."""
SOURCES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
    for package in (*PACKAGES, "tests")
    for path in sorted((ROOT / package).rglob("*.py"))
}
"""Every Python file of ours, parsed."""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in an interpreter of its own, at the root."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


# Late imports ---------------------------------------------------------------------------------------------------------

IMPORT_ALL = """
import importlib, os, pkgutil, sys
package = importlib.import_module(sys.argv[1])
own = os.path.dirname(package.__file__)  # an editable installation adds the checkout's root for the assets
for module in pkgutil.walk_packages([own], package.__name__ + "."):
    if not module.name.endswith("__main__") and module.name not in sys.argv[2:]:
        importlib.import_module(module.name)
print(*{name.partition(".")[0] for name in sys.modules})
"""


PAGE = {
    f"studio.app.{name}"
    for name in ("api", "archive", "comparing", "editing", "exporting", "making", "page", "showing", "widgets")
}
"""What is drawn with Gradio from end to end; ``studio ui`` imports it when it starts, and nothing else does."""


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_a_heavy_package(package: str) -> None:
    done = python(IMPORT_ALL, package, *PAGE)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


def test_the_command_line_starts_without_torch() -> None:
    done = python("import sys, studio, studio.cli; print('torch' in sys.modules, 'numpy' in sys.modules)")
    assert (done.stdout.split(), done.stderr) == (["False", "False"], "")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_command_line_answers_at_once(option: str) -> None:
    answer = "import sys; sys.argv[0] = 'studio'; from studio.cli import main; sys.exit(main())"
    nothing, asked = [], []
    for _ in range(3):
        start = time.perf_counter()
        python("pass")
        middle = time.perf_counter()
        done = python(answer, option)
        nothing.append(middle - start)
        asked.append(time.perf_counter() - middle)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
    assert min(asked) - min(nothing) < 1.0  # half a second on an idle machine


# Safety: nothing that reads a file or a prompt may run it -------------------------------------------------------------

FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "os.system", "os.popen"}


def dangers(tree: ast.AST) -> Iterator[str]:
    """What in ``tree`` could run code from data, as ``line: name``."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found = [n.name for n in names if n.name.partition(".")[0] in FORBIDDEN_MODULES]
            case ast.ImportFrom(module=module, names=names):
                whole = [f"{module}.{n.name}" for n in names]
                found = [n for n in whole if n in FORBIDDEN_CALLS or n.partition(".")[0] in FORBIDDEN_MODULES]
            case ast.Call(func=function, keywords=keywords):
                found = [ast.unparse(function)] if ast.unparse(function) in FORBIDDEN_CALLS else []
                for keyword in keywords:
                    off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                    if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and not off:
                        found.append(keyword.arg)
            case _:
                continue
        yield from (f"{node.lineno}: {name}" for name in found)


def test_no_source_runs_code_from_data() -> None:
    assert not {name: found for name, tree in SOURCES.items() if (found := list(dangers(tree)))}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "torch.load(path)",
        "eval(text)",
        "run(command, shell=True)",
        "np.load(path, allow_pickle=flag)",
    ],
)
def test_dangers_are_seen(line: str) -> None:
    assert list(dangers(ast.parse(line)))


@pytest.mark.parametrize("line", ["model.eval()", "re.compile('a')", "run(command, shell=False)", "load(path)"])
def test_harmless_calls_pass(line: str) -> None:
    assert not list(dangers(ast.parse(line)))


PROMPTS = [
    "a \"red\" 'mushroom'",
    "$(touch pwned) `touch pwned`; touch pwned",
    "$(shell touch pwned) $(error no)",
    "$$HOME ${HOME} \\n # %*? &|<>",
    "two\nlines",
]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("on_command_line", [True, False])
def test_make_passes_a_prompt_as_it_is(prompt: str, on_command_line: bool, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in (binaries / "pip", binaries / "studio", tmp_path / ".venv" / "runtime.stamp"):
        name.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
        name.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKEOVERRIDES", "PROMPT")}
    command = ["make", "--silent", "demo", *([f"PROMPT={prompt}"] if on_command_line else [])]
    environment = clean if on_command_line else {**clean, "PROMPT": prompt}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == (f"generate|{prompt}|", "")
    assert not (tmp_path / "pwned").exists()


# Text -----------------------------------------------------------------------------------------------------------------


def test_every_module_has_a_docstring() -> None:
    assert not [name for name, tree in SOURCES.items() if not ast.get_docstring(tree)]


MACHINE_PATH = re.compile(r"(?<![\w.:/<-])/(?:home|root|Users|work|mnt|srv)/[\w.-]+")
REGISTRY = re.compile(r"https?://[\w.-]*(?:pypi|pythonhosted|npmjs|registry|artifactory|mirror)[\w.-]*")


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Name and text of each file that is, or is about to be, in the repository."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: which files belong to the repository is unknown")
    for name in filter(None, listed.stdout.split("\0")):
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # weights and pictures; files deleted but not yet committed


def test_no_file_names_a_machine_or_a_registry() -> None:
    above = str(ROOT.parent)
    own = above + os.sep if above.count(os.sep) > 1 else None  # "/tmp" alone may well be written somewhere
    found = []
    for name, text in tracked_texts():
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line) or REGISTRY.search(line) or (own and own in line):
                found.append(f"{name}:{number}: {line.strip()[:120]}")
    assert not found


def test_the_version_is_the_same_everywhere() -> None:
    import studio

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert studio.__version__ == project["version"]
    assert re.search(rf"^## {re.escape(studio.__version__)}$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
