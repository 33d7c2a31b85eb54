"""From a request and a loaded prior to the stages that ``optimize`` goes through, in memory alone."""

from dataclasses import dataclass, replace
from pathlib import Path

from guidance.conditioning import Prompts
from guidance.diffusers_prior import DiffusersPrior
from guidance.piecewise import Piecewise
from guidance.prior_folder import Hints
from guidance.priors.reuse import use_as
from representations.scene import Representation
from studio.edit import Source
from studio.memory import Down, thrifty
from studio.optimize import Run, Setting, make_optimiser, step_rng, step_seed
from studio.prior_options import read_picture
from studio.request import Request
from studio.second_prior import views_as_one
from studio.team import ALONE, Team


@dataclass(frozen=True)
class Stages:
    """What the stages of a request have in common."""

    request: Request
    prior: DiffusersPrior
    prompts: Prompts
    source: Source | None
    before: Representation | None
    """What ``source`` looked like."""
    team: Team = ALONE
    """Who shares the steps."""

    @classmethod
    def of(cls, request: Request, prior: DiffusersPrior, source: Source | None, team: Team = ALONE) -> "Stages":
        """Embed the prompts, and make the object of an edit's source."""
        view_prompts = request.view_prompts or ("off" if "pose" in prior.takes else "bucketed")
        prompt = None if source is None else source.request.prompt
        picture = request.prior_options.image
        image = read_picture(Path(picture)) if picture else None
        prompts = Prompts.embed(prior, request.prompt, request.negative, view_prompts, source=prompt, image=image)
        before = None if source is None else source.representation(prior.device)
        return cls(request, prior, prompts, source, before, team)

    def setting(self, index: int) -> Setting:
        """What the steps of a stage read."""
        request, prior = self.request, self.prior
        stage, hints = request.stages[index], prior.hints
        asked = prior if stage.at_once is None else Piecewise(prior, stage.at_once, hints["views"])
        together: Hints = {**hints, "views": views_as_one(stage, hints)}
        share = self.team.share(stage.cameras.views)
        return Setting(stage, asked, self.prompts, together, request.seed, request.task, self.before, share)

    def thrifty(self, downs: tuple[Down, ...], index: int, step: int) -> "Stages":
        """The same as memory allows them after ``step`` steps of a stage; the prior uses the machine that way from now
        on."""
        request = thrifty(self.request, downs, index, step)
        self.prior.parts = use_as(self.prior.parts, request.prior_options.resources)
        return replace(self, request=request)

    def retold(self, run: Run) -> Run:
        """The same run, built anew if this request has other knobs for its representation, or its prior's way to use
        the machine is another now, which adapters follow when they are made."""
        same_prior = run.resources == self.request.prior_options.resources
        if same_prior and run.spec == self.request.representation(run.stage):
            return run
        again = self.begin(run.stage, None)
        again.restore(run.state())
        return again

    def begin(self, index: int, last: Run | None) -> Run:
        """A stage's run: a new representation, an edit's source, one begun from the stage before, or that one itself.

        Args:
            index: of the stage.
            last: the run of the stage before.

        Raises:
            RunError: an edit whose source is of another shape, or has nothing in the region.
        """
        stage, device, seed = self.request.stages[index], self.prior.device, self.request.seed
        rng, spec = step_rng(seed, index, -1), self.request.representation(index)
        built = spec
        if last is None and self.source is not None and self._goes_on(index):
            region = None if self.request.task is None else self.request.task.region
            representation: Representation = self.source.confined(spec, region, device)
        elif last is None:
            representation = spec.build(rng, device)
        elif stage.representation is None:
            representation, built = last.representation, last.spec
        else:
            representation = spec.start_from(last.representation.scene().detach(), rng, device)
        state = stage.guidance.init(self.prior, step_seed(seed, index, -2))
        resources = self.request.prior_options.resources
        return Run(index, 0, representation, make_optimiser(representation), state, built, resources)

    def _goes_on(self, index: int) -> bool:
        """Whether a stage works on what the first one began with; one that is resumed has none before it at hand."""
        return all(stage.representation is None for stage in self.request.stages[1 : index + 1])
