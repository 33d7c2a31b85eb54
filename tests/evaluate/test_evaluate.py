"""The verb from end to end on a tiny prior: files, resume, failure, budget, refusals."""

import dataclasses
import io
import json

import pytest
import torch
from PIL import Image
from rich.console import Console

from representations.hash_field import HashField
from studio.cameras import Orbit
from studio.cli import BAD_USAGE, FAILED, OK, SOME_FAILED, run
from studio.codec import encode
from studio.evaluate import command, protocol, sources
from studio.evaluate.command import Pace, Plan, make_plan, show
from studio.evaluate.contenders import Contender, contenders, draft
from studio.evaluate.protocol import EDIT_SHARE, EMPTY
from studio.evaluate.trial import MARKS
from studio.evaluate.truth import Likeness
from studio.optimize import NonFiniteError

COLUMNS = {
    "recipe", "method", "r_precision", "r_precision_kind", "r_precision_colour", "iou", "colour_error",
    "multi_face_rate", "render_to_asset_psnr", "seconds", "evaluations", "images", "steps", "runs", "quality", "curve",
}  # fmt: skip
BUDGET = 12
WITH_CRITIC = ("SDS:form=clean", "VSD")


@pytest.fixture(autouse=True)
def small(tiny_prior, monkeypatch):
    """Requests of the smallest size on the tiny prior, and coarse pictures of the truth."""
    honest = Contender.request

    def request(self, prompt, seed):
        wanted = honest(self, prompt, seed)
        field = HashField(levels=(4, 8), occupancy_cells=8, rate=1e-3)
        stages = tuple(
            dataclasses.replace(stage, representation=field, cameras=Orbit(views=2, size=16), steps=min(stage.steps, 6))
            for stage in wanted.stages
        )
        return dataclasses.replace(wanted, stages=stages, prior=str(tiny_prior))

    monkeypatch.setattr(Contender, "request", request)
    monkeypatch.setattr("studio.evaluate.truth.SIZE", 24)
    monkeypatch.setattr("studio.evaluate.truth.TURN", 90)
    monkeypatch.setattr("studio.evaluate.truth.AZIMUTHS", (0, 90))


def plan(folder, methods=("SDS:form=clean", "SJC"), recipes=(), prompts=("a red cube", "a blue mug"), seeds=(0,)):
    return Plan(contenders(methods, recipes), prompts, seeds, BUDGET, folder)


def shown(wanted) -> tuple[int, str]:
    console = Console(record=True, width=200, file=io.StringIO())
    status = show(wanted, torch.device("cpu"), console)
    return status, console.export_text()


def summary(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder for a comparison that several tests look at; the first to come makes it."""
    return tmp_path_factory.mktemp("evaluate") / "made"


@pytest.fixture
def whole(made):
    """A finished comparison of two methods on two prompts."""
    if not (made / "sheet.webp").is_file():
        assert shown(plan(made, methods=WITH_CRITIC))[0] == OK
    return made


def test_the_summary_has_every_column(whole):
    found = summary(whole)
    assert [row["method"] for row in found["rows"]] and {r["method"] for r in found["rows"]} == {"SDS clean", "VSD"}
    for row in found["rows"]:
        assert row.keys() >= COLUMNS and row["runs"] == 2 and row["recipe"] == "draft"
        assert row["r_precision"] is None and row["multi_face_rate"] is None and row["render_to_asset_psnr"] is None
        assert 0 <= row["iou"] <= 1 and 0 <= row["colour_error"] <= 1 and row["seconds"] > 0
        assert len(row["curve"]) == len(MARKS) and row["curve"][-1]["evaluations"] == row["evaluations"]
        assert row["spread"]["quality"] is not None
    qualities = [row["quality"] for row in found["rows"]]
    assert qualities == sorted(qualities, reverse=True)
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["protocol"]["prompts"] == ["a red cube", "a blue mug"] and "torch" in found["versions"]


def test_budgets_are_respected_within_a_step(whole):
    for row in summary(whole)["rows"]:
        each = row["evaluations"] / row["steps"]
        assert abs(row["evaluations"] - BUDGET) < each and row["images"] > row["evaluations"]
    steps = {row["method"]: row["steps"] for row in summary(whole)["rows"]}
    assert steps["SDS clean"] == BUDGET > steps["VSD"]


def test_table_and_pictures_are_there_to_look_at(whole):
    table = (whole / "summary.md").read_text()
    assert table.count("\n| draft |") == 2 and "| SDS clean |" in table and "±" in table and '"a blue mug"' in table
    with Image.open(whole / "quality.webp") as quality, Image.open(whole / "sheet.webp") as sheet:
        assert quality.width > 800 and len(set(quality.convert("RGB").resize((200, 100)).get_flattened_data())) > 50
        assert sheet.height > 3 * 84 and len(set(sheet.convert("RGB").resize((200, 100)).get_flattened_data())) > 50
    strips = sorted(path.name for path in (whole / "runs" / "vsd").glob("*.png"))
    assert strips == ["a-blue-mug-seed0-12.png", "a-red-cube-seed0-12.png"]


def test_what_is_there_is_not_made_again(whole, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("*")}
    monkeypatch.setattr(protocol, "measure", lambda *_: pytest.fail("made again"))
    status, words = shown(plan(whole, methods=WITH_CRITIC))
    assert status == OK and words.count("was there") == 4
    assert before == {path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("*")}


def test_other_settings_and_damage_are_made_again(tmp_path, monkeypatch):
    one = plan(tmp_path, methods=["SDS:form=clean"], prompts=["a red cube"])
    (file,) = [job.file(tmp_path) for job in one.jobs]
    shown(one)
    first = json.loads(file.read_text())
    file.write_text(file.read_text()[:-20])
    assert "was there" not in shown(one)[1]
    again = json.loads(file.read_text())
    assert again["curve"] == first["curve"]
    settings = again["settings"]["request"]["stages"][0]["guidance"]
    settings["scale"] += 1
    file.write_text(json.dumps(again))
    assert "was there" not in shown(one)[1]


def test_records_outlive_new_knobs(tmp_path):
    one = plan(tmp_path, methods=["SDS:form=clean"], prompts=["a red cube"])
    (file,) = [job.file(tmp_path) for job in one.jobs]
    shown(one)
    record = json.loads(file.read_text())
    del record["settings"]["request"]["stages"][0]["guidance"]["controls"]["group"]
    file.write_text(json.dumps(record))
    assert "was there" in shown(one)[1]
    record["settings"]["request"]["no_longer_known"] = 1
    file.write_text(json.dumps(record))
    assert "was there" not in shown(one)[1]


def test_sources_outlive_new_knobs(tmp_path):
    request = draft("a red cube", 0)
    home, written = sources._home(request, tmp_path), encode(request)
    del written["stages"][0]["guidance"]["controls"]["group"]
    older = tmp_path / "a-red-cube-seed0-01234567"
    older.mkdir()
    (older / "request.json").write_text(json.dumps(written))
    assert home.parent == tmp_path and home != older == sources._home(request, tmp_path)


def test_a_failing_method_becomes_a_row(tmp_path, monkeypatch):
    honest = protocol.measure

    def measure(request, *arguments):
        if request.prompt == "a blue mug" and type(request.stages[0].guidance).__name__ == "SJC":
            raise NonFiniteError("step 3: no numbers")
        return honest(request, *arguments)

    monkeypatch.setattr(protocol, "measure", measure)
    status, words = shown(plan(tmp_path))
    rows = {row["method"]: row for row in summary(tmp_path)["rows"]}
    assert status == SOME_FAILED and "NonFiniteError: step 3: no numbers" in words
    assert (rows["SJC"]["runs"], rows["SJC"]["failed"], rows["SDS clean"]["failed"]) == (1, 1, 0)
    table = (tmp_path / "summary.md").read_text()
    assert "1 of 2" in table and "- SJC: NonFiniteError: step 3: no numbers" in table
    monkeypatch.setattr(protocol, "measure", honest)
    status, words = shown(plan(tmp_path))
    assert status == OK and words.count("was there") == 3  # what failed is tried again


def test_status_says_when_everything_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "measure", lambda *_: 1 / 0)
    status, _ = shown(plan(tmp_path, prompts=["a red cube"]))
    assert status == FAILED and all(row["quality"] is None for row in summary(tmp_path)["rows"])
    assert "| SDS clean |  |" in (tmp_path / "summary.md").read_text()


def test_an_empty_scene_is_said_and_scores_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("studio.evaluate.trial.likeness", lambda *_: Likeness(0.0, 0.4, 0.0, solid=False))
    status, _ = shown(plan(tmp_path, methods=["SJC"], prompts=["a red cube"]))
    (row,) = summary(tmp_path)["rows"]
    assert status == SOME_FAILED and row["errors"] == [EMPTY] and (row["iou"], row["quality"], row["runs"]) == (0, 0, 1)


def test_interrupted_comparisons_keep_what_is_done(tmp_path, monkeypatch):
    honest, seen = protocol.measure, []

    def measure(*arguments):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return honest(*arguments)

    monkeypatch.setattr(protocol, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        shown(plan(tmp_path))
    assert sum(row["runs"] for row in summary(tmp_path)["rows"]) == 2 and (tmp_path / "sheet.webp").is_file()
    assert shown(plan(tmp_path))[1].count("was there") == 2


def test_recipes_run_for_their_own_steps(tmp_path):
    assert shown(plan(tmp_path, methods=[], recipes=["draft"], prompts=["a red cube"]))[0] == OK
    (row,) = summary(tmp_path)["rows"]
    assert (row["recipe"], row["method"], row["steps"]) == ("draft", "SDS", 6)


def test_edits_have_a_table_of_their_own(tmp_path):
    wanted = plan(tmp_path, methods=["SDS:form=clean", "DDS"], prompts=["a red cube"])
    assert shown(wanted)[0] == OK
    found = summary(tmp_path)
    assert [row["label"] for row in found["rows"]] == ["SDS clean"]
    edits = {row["label"]: row for row in found["edits"]}
    assert edits.keys() == {"DDS", "source, unchanged"} and found["protocol"]["edits"] == {"a red cube": "a blue cube"}
    assert edits["DDS"]["evaluations"] == round(BUDGET * EDIT_SHARE) and edits["source, unchanged"]["evaluations"] == 0
    assert edits["source, unchanged"]["colour_error"] > 0 and edits["DDS"].keys() >= COLUMNS
    assert "| draft | DDS |" in (tmp_path / "summary.md").read_text() and (tmp_path / "edits.webp").is_file()
    (source,) = (tmp_path / "sources").iterdir()
    with Image.open(wanted.jobs[1].picture(tmp_path)) as pictures:
        assert pictures.size == (8 * 128, 3 * 128)  # result, truth, source
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert shown(dataclasses.replace(wanted, folder=moved))[1].count("was there") == 2
    assert [path.name for path in (moved / "sources").iterdir()] == [source.name]


# Usage ----------------------------------------------------------------------------------------------------------------


def test_defaults_and_full_protocol(tmp_path):
    usual = make_plan(None, None, None, None, None, False, tmp_path)
    full = make_plan(None, None, None, None, None, True, tmp_path)
    assert (len(usual.prompts), usual.seeds, usual.evaluations) == (4, (0,), 800)
    assert (len(full.prompts), full.seeds, full.evaluations) == (10, (0, 1, 2), 3200)
    assert len(make_plan(None, ["draft"], None, None, None, False, tmp_path).contenders) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "NFDS"], "did you mean 'NFSD'"),
        (["--recipes", "drafft"], "did you mean 'draft'"),
        (["--methods", "DDS:scael=3"], "scale"),
        (["--methods", "SDS:scael=3"], "scale"),
        (["--prompts", "/nowhere/prompts.txt"], "No such file"),
        (["--evaluations", "0"], "must be 1 or more"),
        (["--seed", "x"], "seeds"),
        (["--device", "cuda:77"], "There is no device"),
    ],
)
def test_wrong_usage_is_refused_in_words(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "show", lambda *_: pytest.fail("went on"))
    assert run(["evaluate", *arguments]) == BAD_USAGE
    told = capsys.readouterr()
    assert words in told.err + told.out and not (tmp_path / "runs").exists()


def test_prompts_without_a_truth_are_refused(capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red cube\n\na red elefant\n")
    assert run(["evaluate", "--prompts", str(tmp_path / "prompts.txt")]) == BAD_USAGE
    assert "names no object of the toybox" in capsys.readouterr().err


def test_the_time_left_is_said_while_there_is_something_left():
    (one, other), pace = protocol.jobs(contenders(["SDS", "VSD"], []), ["a red cube"], [0], 8), Pace()
    assert pace.left([one]) == ""
    pace.add(one, 20.0)
    assert pace.left([other]) == "less than a minute left" and pace.left([]) == ""
    pace.add(other, 600.0)
    assert pace.left([one, other]) == "about 10 min left"
