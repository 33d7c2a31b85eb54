"""Worker processes at a tenth of a second each: forked from one that has imported everything and computed nothing."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
_MOTHER = """
import os, sys, warnings
warnings.simplefilter("ignore")
import torch, studio.jobs.command, studio.jobs.worker, studio.export.asset, studio.export.pictures
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
import tests.reliability.children as children
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    name, *arguments = line.rstrip("\\n").split("\\t")
    if name == "wait":
        print(os.waitpid(int(arguments[0]), 0)[1], flush=True)
    elif (pid := os.fork()) == 0:
        os.close(0)
        status = 70
        try:
            status = getattr(children, name)(*arguments) or 0
        finally:
            os._exit(status)
    else:
        print(pid, flush=True)
"""


class Nursery:
    """Runs functions of ``children`` in processes of their own, which may be killed."""

    def __enter__(self) -> "Nursery":
        """Import everything once."""
        self._mother = subprocess.Popen(
            [sys.executable, "-c", _MOTHER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
        )
        self._living: set[int] = set()
        try:
            assert self._answer() == "ready"
        except AssertionError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill whoever is left."""
        for pid in list(self._living):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._mother.kill()
        self._mother.wait()
        for stream in (self._mother.stdin, self._mother.stdout):
            if stream is not None:
                stream.close()

    def begin(self, name: str, *arguments: object) -> int:
        """Start a function in a process; returns its id."""
        pid = int(self._ask("\t".join([name, *map(str, arguments)])))
        self._living.add(pid)
        return pid

    def kill(self, pid: int) -> None:
        """kill -9, and wait until it is gone."""
        os.kill(pid, signal.SIGKILL)
        self.wait(pid)

    def wait(self, pid: int) -> int:
        """Wait for a process to end; returns its exit status, negative for a signal."""
        self._living.discard(pid)
        return os.waitstatus_to_exitcode(int(self._ask(f"wait\t{pid}")))

    def _ask(self, line: str) -> str:
        assert self._mother.stdin is not None
        self._mother.stdin.write(line + "\n")
        self._mother.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._mother.stdout is not None
        line = self._mother.stdout.readline().strip()
        assert line, "the mother of the workers died"
        return line
