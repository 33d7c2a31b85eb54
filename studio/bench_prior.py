"""``studio bench --prior``: seconds and memory of an iteration with a prior at its true size, and where they go.

An iteration is what a user's run does: render a small cloud of gaussians, ask the method for its loss, go the way back,
step, and let the critic learn; through the very classes, on whatever device is there. SDS and VSD stand for methods
without and with a critic.
"""

import contextlib
import dataclasses
import gc
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from guidance import SDS, VSD
from guidance.conditioning import Prompts
from guidance.contract import Guidance, OnePassPrior, Prior, Views
from guidance.diffusers_prior import DiffusersPrior
from guidance.piecewise import Piecewise
from guidance.prior_folder import MissingPriorError
from guidance.priors.loading import WIDE
from guidance.priors.memory import need_of_parts
from guidance.priors.parts import Parts
from representations.splats import Splats
from studio.bench import machine, wait
from studio.bench_cases import views_around
from studio.bench_networks import PUBLISHED, random_parts
from studio.bench_options import Method, PriorTiming
from studio.checkpoints import write_atomically
from studio.cli import FAILED, OK
from studio.delivery import peak_memory_mb, versions
from studio.doctor import free_memory
from studio.memory import is_out_of_memory
from studio.optimize import make_optimiser, step_rng
from studio.paths import MissingAsset, resolve_prior

_METHODS: dict[Method, Any] = {"SDS": SDS(7.5), "VSD": VSD(7.5)}
_SCENE = Splats()
_PROMPT = "a red mushroom"


@dataclass(frozen=True)
class PriorRow:
    """An iteration of a method with a prior; medians, in seconds."""

    prior: str
    weights: Literal["random", "loaded"]
    method: Method
    pixels: int
    views: int
    at_once: int | None
    dtype: str
    compile: str
    network_parameters: int
    seconds: float
    """Of an iteration."""
    processor_seconds: float
    """Of all cores together, in an iteration: what other work on the machine changes least."""
    every: tuple[float, ...]
    """Of each iteration that counts."""
    first: float
    """Of the first iteration, compilation and all."""
    parts: dict[str, float]
    """render; network: passes for the method's gradient; encoder: pictures to latents; way_back: through the encoder to
    the pictures; scene: from the pictures to the gaussians, and their step; critic: all of its learning; rest."""
    prior_share: float
    """Part of an iteration that is not spent on the scene."""
    peak_mb: dict[str, int]
    """MiB at most: of the process, and of a GPU's memory."""


class Clock:
    """Adds up seconds under names."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        """The time when all that was asked of the device is done."""
        wait(self.device)
        return time.perf_counter()

    @contextlib.contextmanager
    def during(self, name: str) -> Iterator[None]:
        """What happens inside counts under ``name``."""
        began = self.now()
        yield
        self.spent[name] += self.now() - began


class Clocked:
    """A prior whose passes and encodings are timed; a prior too."""

    def __init__(self, prior: Prior, clock: Clock) -> None:
        self._prior, self._clock = prior, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prior, name)

    def encode(self, images: Tensor) -> Tensor:
        """As the prior does."""
        with self._clock.during("encoder"):
            return self._prior.encode(images)

    def predict_noise(self, *given: Any, **named: Any) -> Tensor:
        """As the prior does."""
        with self._clock.during("network"):
            return self._prior.predict_noise(*given, **named)

    def predict_both(self, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """As the prior does, if it can."""
        with self._clock.during("network"):
            return cast(OnePassPrior, self._prior).predict_both(*given, **named)


# Measuring ------------------------------------------------------------------------------------------------------------


def time_prior(name: str, prior: DiffusersPrior, timing: PriorTiming, say: Callable[[str], Any]) -> Iterator[PriorRow]:
    """Time every method on a loaded prior, a row as soon as it is known; ``say`` is told what is going on."""
    for method in timing.methods:
        forget_peak(prior.device)
        iterate = _iteration(prior, _METHODS[method], timing)
        taken: list[dict[str, float]] = []
        for step in range(timing.steps + 1):
            say(f"{name}, {method}: iteration {step} of {timing.steps}" if step else f"{name}, {method}: warming up")
            taken.append(iterate(step))
        counted = taken[1:] or taken
        middle = {part: statistics.median(one[part] for one in counted) for part in taken[0]}
        seconds, scene = middle.pop("whole"), middle["render"] + middle["scene"]
        yield PriorRow(
            name,
            "random" if is_published(name) else "loaded",
            method,
            prior.resolution,
            timing.views,
            timing.at_once,
            str(prior.dtype).removeprefix("torch."),
            timing.resources.compile,
            sum(weight.numel() for weight in prior.network.parameters()),
            round(seconds, 4),
            round(middle.pop("processors"), 4),
            tuple(round(one["whole"], 4) for one in counted),
            round(taken[0]["whole"], 4),
            {part: round(value, 4) for part, value in middle.items()},
            round(1 - scene / seconds, 4),
            peak_mb(prior.device),
        )


def _iteration(prior: DiffusersPrior, method: Guidance[nn.Module], timing: PriorTiming) -> Callable[[int], Any]:
    """A function that takes an iteration and says where its seconds went."""
    device, hints = prior.device, prior.hints
    scene = _SCENE.build(step_rng(0, 0, -1), device)
    optimiser, state = make_optimiser(scene), method.init(prior)
    prompts = Prompts.embed(prior, _PROMPT)
    cameras = views_around(timing.views, prior.resolution).to(device)
    background = torch.ones(timing.views, 3, device=device)

    def iterate(step: int) -> dict[str, float]:
        clock, rng = Clock(device), step_rng(0, 0, step)
        clocked: Any = Clocked(prior, clock)
        asked: Any = clocked if timing.at_once is None else Piecewise(clocked, timing.at_once, hints["views"])
        began, worked = clock.now(), time.process_time()
        with clock.during("render"):
            out = scene.scene().render(cameras, background)
        views = Views(out.rgb, cameras.pose, background, out.depth, out.normal, alpha=out.alpha)
        with clock.during("loss"):
            condition = prompts.condition(views)
            loss = method.loss(state, asked, views, condition, 0.5, rng)
        asking, reached = dict(clock.spent), []
        out.rgb.register_hook(lambda _: reached.append(clock.now()))
        turned = clock.now()
        optimiser.zero_grad(set_to_none=True)
        loss.value.backward()
        optimiser.step()
        done = clock.now()
        method.train_critic(state, asked, views, condition, rng)
        ended = clock.now()
        network, encoder = asking.get("network", 0.0), asking.get("encoder", 0.0)
        return {
            "whole": ended - began,
            "processors": time.process_time() - worked,
            "render": asking["render"],
            "network": network,
            "encoder": encoder,
            "way_back": reached[0] - turned,
            "scene": done - reached[0],
            "critic": ended - done,
            "rest": asking["loss"] - network - encoder,
        }

    return iterate


def forget_peak(device: torch.device) -> None:
    """Begin to look for the most memory anew, where the system allows it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> dict[str, int]:
    """MiB at most since ``forget_peak``: of the process (where the system does not tell: of all its life), of a GPU."""
    peak = peak_memory_mb(device)
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        peak["host"] = int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) // 2**10
    return peak


# Priors ---------------------------------------------------------------------------------------------------------------


def prior_for(name: str, device: torch.device, timing: PriorTiming) -> DiffusersPrior:
    """A published model with random weights by its name, or any prior by its path.

    Raises:
        UnknownPrior, MissingPriorError, ValueError: there is no such prior, or it cannot be used so; in words.
        MemoryError: it needs more than is free; in words.
    """
    if not is_published(name):
        return DiffusersPrior.load(resolve_prior(name), device, resources=timing.resources, resolution=timing.pixels)
    forget_peak(device)  # and the prior before this one
    need = needed(name, device, timing)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if free is not None and need > free:
        raise MemoryError(
            f"it needs about {need / 2**30:.1f} GB so, and {free / 2**30:.1f} GB are free. What helps: fewer --pixels "
            "or --views, --at-once 1, --dtype bfloat16, --methods SDS"
        )
    return DiffusersPrior(_random(name, device, device, timing))


def is_published(name: str) -> bool:
    """Whether a name stands for a published model with random weights; a path that exists does not."""
    return name in PUBLISHED and not Path(name).exists()


def needed(name: str, device: torch.device, timing: PriorTiming) -> int:
    """Bytes that iterations with a published model take on a device; see ``guidance.priors.memory``."""
    parts = _random(name, torch.device("meta"), device, timing)
    ranks = (_METHODS["VSD"].critic.rank,) if "VSD" in timing.methods else ()
    return need_of_parts(parts, timing.views, 2, ranks, timing.at_once, timing.resources).peak()


def _random(name: str, place: torch.device, device: torch.device, timing: PriorTiming) -> Parts:
    """Parts on ``place`` in the type that suits ``device``."""
    published, resources = PUBLISHED[name], timing.resources
    dtype = resources.type_for(device, published.pipeline in WIDE)
    if place.type == "meta":
        resources = dataclasses.replace(resources, compile="off", offload="none")
    return random_parts(published, place, resources, dtype, timing.pixels or published.pixels)


# Showing --------------------------------------------------------------------------------------------------------------


def show(names: Sequence[str], timing: PriorTiming, device: torch.device, file: Path | None = None) -> int:
    """Time priors; print what comes out as it is known, and write it into ``file`` if there is one.

    Returns the exit status. What does not fit, or cannot be used so, is said in words, and the others go on.

    Raises:
        OSError: the file cannot be written.
    """
    from rich.console import Console

    console, rows, left_out = Console(width=150), [], {}
    about = machine(device) | versions()
    console.print(", ".join(f"{key} {value}" for key, value in about.items()), markup=False)

    def write() -> None:  # at once, for on slow machines people do not wait for the end
        if file is not None:
            found = {"machine": about, "rows": [dataclasses.asdict(row) for row in rows], "left_out": left_out}
            write_atomically(file, json.dumps(found, indent=2).encode())

    write()
    for name in names:
        with console.status(f"{name}: building") as status:
            try:
                for row in time_prior(name, prior_for(name, device, timing), timing, status.update):
                    rows.append(row)
                    console.print(_words(row), markup=False)
                    write()
            except (RuntimeError, ValueError, MissingPriorError, MissingAsset, MemoryError) as problem:
                if isinstance(problem, RuntimeError) and not is_out_of_memory(problem):
                    raise
                left_out[name] = str(problem).splitlines()[0]
                console.print(f"{name}: {left_out[name]}", markup=False, style="red")
    write()
    return FAILED if left_out else OK


def _words(row: PriorRow) -> str:
    parts = ", ".join(f"{part.replace('_', ' ')} {value:.3g}" for part, value in row.parts.items() if value >= 5e-4)
    memory = ", ".join(f"{kind} {value / 1024:.1f} GB" for kind, value in row.peak_mb.items())
    views = f"{row.views} view{'s' * (row.views > 1)} of {row.pixels} px"
    return (
        f"{row.prior} ({row.weights} weights, {row.dtype}), {row.method}, {views}: {row.seconds:.3g} s an iteration "
        f"({parts}); {row.prior_share:.1%} in the prior; {memory}"
    )
