"""Names of what is compared, and the requests they stand for."""

from typing import Any

import pytest

from guidance.methods import AnyGuidance
from guidance.sds import SDS
from studio.codec import members
from studio.evaluate.contenders import METHODS, contenders
from studio.options import UsageError


def test_every_method_is_compared():
    known = members(AnyGuidance)
    assert {name.partition(":")[0] for name in METHODS} == known.keys()
    every = contenders(METHODS, [])
    assert len({c.label for c in every}) == len(every) == len(known) + 1 and {"SDS", "SDS clean"} <= {
        c.label for c in every
    }
    assert {c.label for c in every if c.edits} == {name for name, kind in known.items() if "source" in kind.requires}


def test_a_name_may_carry_knobs():
    noise, clean, strong = contenders(["SDS:form=noise", "sds:form=clean", "SDS:form=clean,scale=20"], [])
    assert [c.label for c in (noise, clean, strong)] == ["SDS", "SDS clean", "SDS clean scale=20"]
    asked: list[Any] = [c.request("a red cube", 3).stages[0].guidance for c in (noise, clean, strong)]
    assert all(isinstance(guidance, SDS) for guidance in asked)
    assert [guidance.form for guidance in asked] == ["noise", "clean", "clean"] and asked[2].scale == 20
    assert strong.request("a red cube", 3).seed == 3 and strong.budgeted


def test_a_prior_may_answer_in_one_pass():
    (contender,) = contenders(["SDS:form=clean,one_pass=own"], [])
    request = contender.request("a red cube", 3)
    assert contender.label == "SDS clean one pass" and request.prior_options.one_pass == "own"


def test_recipes_run_as_they_are():
    (standard,) = contenders([], ["standard"])
    request = standard.request("a red cube", 0)
    assert standard.label == "standard" and not standard.budgeted and request.steps == 1000


@pytest.mark.parametrize(
    ("methods", "recipes", "words"),
    [(["NFDS"], [], "did you mean 'NFSD'"), ([], ["drafft"], "did you mean 'draft'")],
)
def test_unknown_names_are_refused_in_words(methods, recipes, words):
    (unknown,) = contenders(methods, recipes)
    with pytest.raises(UsageError, match=words):
        unknown.request("a red cube", 0)
