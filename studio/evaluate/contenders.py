"""What is compared: a method on the draft recipe, by name and perhaps with a knob, or a recipe as it is."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from guidance.methods import AnyGuidance
from studio.codec import members
from studio.options import Edit, Generate, build_edit, build_request
from studio.request import Request

RECIPE = "draft"
"""The recipe that methods are compared on."""
_FORMS = ("SDS:form=noise", "SDS:form=clean")
METHODS: tuple[str, ...] = tuple(
    name for method in members(AnyGuidance) for name in (_FORMS if method == "SDS" else (method,))
)
"""Every method there is; SDS in both of its forms."""
_PRIORS = {"one_pass": "--prior-options.one-pass"}
"""Knobs that are the prior's, not the method's."""


@dataclass(frozen=True)
class Contender:
    """One line of the comparison."""

    label: str
    recipe: str
    method: str | None = None
    """Guidance method on the recipe; none: the recipe's own."""
    knobs: tuple[str, ...] = ()
    """Further arguments of ``studio generate`` or ``studio edit``."""

    @property
    def budgeted(self) -> bool:
        """Whether it runs for a number of evaluations, and not for the steps of its recipe."""
        return self.method is not None

    @property
    def edits(self) -> bool:
        """Whether it changes an object that is there already."""
        return self.method is not None and "source" in getattr(_kinds().get(self.method.lower()), "requires", ())

    def request(self, prompt: str, seed: int) -> Request:
        """What makes its object from a prompt alone.

        Raises:
            UsageError: no such recipe or method.
            SystemExit: no such knob.
        """
        return build_request(Generate(prompt, recipe=self.recipe, method=self.method, seed=seed), list(self.knobs))

    def edit(self, source: Path, prompt: str) -> Request:
        """What changes the object of the finished run ``source``.

        Raises:
            UsageError: no such method.
            RunError: there is no such run.
            SystemExit: no such knob.
        """
        assert self.method is not None
        return build_edit(Edit(source, prompt, method=self.method), list(self.knobs))


def draft(prompt: str, seed: int) -> Request:
    """The recipe as it is."""
    return Contender(RECIPE, RECIPE).request(prompt, seed)


def contenders(methods: Iterable[str], recipes: Iterable[str]) -> list[Contender]:
    """The contenders of these names.

    Args:
        methods: names of methods, on ``RECIPE``; ``SDS:scale=20`` or ``SDS:form=clean,scale=20`` also sets knobs, and
            ``SDS:one_pass=own`` asks the prior for both answers in one pass.
        recipes: names of recipes.
    """
    return [*map(_method, methods), *(Contender(name, name) for name in recipes)]


def _method(name: str) -> Contender:
    method, _, rest = name.partition(":")
    settings = [setting.partition("=") for setting in rest.split(",") if setting]
    knobs = [word for knob, _, value in settings for word in (_PRIORS.get(knob, f"--stages.0.guidance.{knob}"), value)]
    kind = _kinds().get(method.lower())
    # "SDS clean" for form=clean, "SDS scale=20", and plain "SDS" for what is SDS's default anyway.
    told = [
        knob.replace("_", " ") if knob in _PRIORS else value if value.isalpha() else f"{knob}={value}"
        for knob, _, value in settings
        if kind is None or str(getattr(kind(), knob, None)) != value
    ]
    return Contender(" ".join([method if kind is None else kind.__name__, *told]), RECIPE, method, tuple(knobs))


def _kinds() -> dict[str, type]:
    return {name.lower(): kind for name, kind in members(AnyGuidance).items()}
