"""What the page's buttons do to jobs, and what it finds."""

import json
import shutil
from pathlib import Path

import pytest

from studio.app import service as service_
from studio.app.change import Change, edit_request, groups_of
from studio.app.form import Form, form_of, request_of
from studio.app.service import Service
from studio.app.shelf import Shelf
from studio.app.viewing import files, frame
from studio.app.words import checks, result_words, state_line
from studio.codec import encode
from studio.folder import RunError
from studio.jobs import store
from studio.jobs.rows import job_of
from studio.jobs.store import Item
from studio.options import UsageError
from studio.request import Request

MUG = Form("a mug", prior="tiny")


def test_a_form_becomes_jobs_in_order(service: Service) -> None:
    ids = service.submit(Form("a {red|blue} mug", prior="tiny", seed=3, copies=2))
    jobs = [service.store.job(id) for id in ids]
    assert [(job.prompt, job.seed) for job in jobs] == [(f"a {c} mug", s) for c in ("red", "blue") for s in (3, 4)]
    assert [service.store.position(id) for id in ids] == [1, 2, 3, 4]
    assert all((job.folder / "request.json").is_file() for job in jobs)
    assert service.store.request(jobs[2]).prompt == "a blue mug"


@pytest.mark.parametrize("form", [Form(""), Form("a {mug"), Form("a mug", steps="0"), Form("a mug", prior="elsewhere")])
def test_what_is_refused_is_not_queued(form: Form, service: Service) -> None:
    assert service.plan(form).refused
    with pytest.raises(UsageError):
        service.submit(form)
    assert service.store.jobs() == []


def test_a_plan_tells_time_memory_and_prompts(service: Service) -> None:
    plan = service.plan(Form("a {red|blue} mug", copies=3))
    assert plan.jobs == 6 and plan.prompts == ("a red mug", "a blue mug") and not plan.refused
    assert plan.estimate is not None and plan.estimate.seconds > 0 and plan.estimate.memory_mb > 0
    fine = service.plan(Form("a mug", recipe="fine")).estimate
    assert fine is not None and fine.seconds > plan.estimate.seconds


def test_runs_are_found_by_job_and_by_folder(studio: Service) -> None:
    (run,) = studio.finished()
    assert run.job is not None and studio.find(run.ref) == run
    by_name = studio.find(run.folder.name)
    assert by_name is not None and by_name.job is None and by_name.folder == run.folder and by_name.state == "done"
    assert studio.request(run).prompt == "a red cube"


@pytest.mark.parametrize("ref", ["", "..", "../made", "/etc", ".app", "a\0b", "nothing", "0" * 12, "x/../../etc"])
def test_nothing_else_is_found(ref: str, studio: Service) -> None:
    assert studio.find(ref) is None


def test_a_link_out_of_home_is_not_followed(service: Service, studio: Service) -> None:
    (run,) = studio.finished()
    (service.home / "linked").symlink_to(run.folder)
    assert service.find("linked") is None


def test_the_gallery_holds_runs_of_the_command_line_too(service: Service, studio: Service) -> None:
    shutil.copytree(studio.finished()[0].folder, service.home / "by-hand")
    (found,) = service.finished()
    assert found.ref == "by-hand" and found.job is None
    assert service.finished("RED cube") == [found] and service.finished("mug") == []


def test_the_gallery_reads_what_it_shows_and_no_more(
    service: Service, small: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.store.submit(small, [Item(f"a mug {i}", i) for i in range(300)])
    with service.store.database.write() as db:
        db.execute("UPDATE jobs SET state = 'done', ended = number")
    for name in (*(job.folder.name for job in service.store.jobs()), "by-hand", "by-hand-2", "unfinished"):
        (service.home / name).mkdir()
        for file in ("request.json", "result.glb", *([] if name == "unfinished" else ["report.json"])):
            (service.home / name / file).write_text(json.dumps(encode(small)))
    rows, looked = [], []
    monkeypatch.setattr(store, "job_of", lambda row, home: rows.append(row) or job_of(row, home))
    monkeypatch.setattr(service_, "read_request", lambda folder: looked.append(folder.name) or small)
    found = service.finished(limit=7)
    assert len(rows) == 7 and looked == []
    assert {run.ref for run in found[:2]} == {"by-hand", "by-hand-2"}  # the jobs ended in 1970
    assert [run.job.seed for run in found[2:] if run.job] == [299, 298, 297, 296, 295]
    for _ in range(2):
        assert service.finished("no such words") == []
    assert sorted(looked) == ["by-hand", "by-hand-2"]  # once each


def test_buttons_change_the_queue(service: Service) -> None:
    a, b, c = service.submit(Form("a {red|blue|green} mug", prior="tiny"))

    def order() -> list[str]:
        return [job.id for job in service.store.jobs(["queued"])]

    service.act("up", c)
    assert order() == [a, c, b]
    service.act("up", c)
    service.act("up", c)
    assert order() == [c, a, b]
    service.act("down", a)
    assert order() == [c, b, a]
    service.act("down", a)
    assert order() == [c, b, a]
    service.act("pause", b)
    assert order() == [c, a] and service.store.job(b).state == "paused"
    service.act("resume", b)
    service.act("cancel", c)
    assert set(order()) == {a, b} and service.store.job(c).state == "cancelled"
    service.act("retry", c)
    assert service.store.job(c).state == "queued"
    service.act("hold", "")
    assert service.store.queue_held() is not None
    service.act("release", "")
    assert service.store.queue_held() is None


@pytest.mark.parametrize(
    ("action", "ref"), [("explode", "0" * 12), ("pause", "0" * 12), ("up", "0" * 12), ("retry", "x")]
)
def test_what_cannot_be_done_is_said(action: str, ref: str, service: Service) -> None:
    with pytest.raises(ValueError, match=r"[A-Za-z]{3}"):
        service.act(action, ref)


def test_the_stamp_changes_with_the_queue_and_the_record(service: Service) -> None:
    (id,) = service.submit(MUG)
    run = service.find(id)
    before = service.stamp(run)
    assert service.stamp(run) == before
    service.act("pause", id)
    after = service.stamp(run)
    assert after != before
    assert run is not None
    (run.folder / "events.jsonl").write_text('{"event": "Working", "what": "x"}\n')
    assert service.stamp(run) != after


def test_the_list_begins_with_what_runs_and_waits(studio: Service, service: Service) -> None:
    first, second = service.submit(Form("a {red|blue} mug", prior="tiny"))
    service.act("cancel", first)
    assert [run.ref for run in service.listed()] == [second, first]
    assert [run.state for run in studio.listed()] == ["done"]


def test_words_for_every_state(service: Service, studio: Service) -> None:
    first, second = service.submit(Form("a {red|blue} mug", prior="tiny"))

    def line(ref: str, held: bool = False) -> str:
        run = service.find(ref)
        assert run is not None
        position = service.store.position(ref)
        return state_line(run, service.progress(run), position, held)

    assert line(first) == "next in the queue" and line(second) == "2nd in the queue"
    assert line(second, held=True) == "2nd in the queue, the queue is held"
    service.act("pause", first)
    assert line(first) == "paused"
    service.act("cancel", first)
    assert line(first) == "cancelled"
    (done,) = studio.finished()
    assert state_line(done, studio.progress(done), None).startswith("done in ")


def test_results_in_words(studio: Service) -> None:
    (run,) = studio.finished()
    words = result_words(run.report)
    assert words[0].endswith("faces") and "64 px texture" in words
    found = {title: (well, text) for title, well, text in checks(run.report)}
    assert "Like what was optimised" in found and found["Time"][0] is None
    broken = checks({**run.report, "watertight": False, "validator": {"errors": 2, "warnings": 1}})
    assert ("glTF objections", False, "Khronos' validator counts 2 errors and 1 warnings.") in broken
    assert next(well for title, well, _ in broken if title == "Not watertight") is False


def test_a_damaged_report_is_no_report(service: Service, studio: Service) -> None:
    copy = service.home / "copy"
    shutil.copytree(studio.finished()[0].folder, copy)
    for text in ("{", "[]", json.dumps("x")):
        (copy / "report.json").write_text(text)
        run = service.find("copy")
        assert run is not None and run.report == {}


def test_settings_of_a_run_make_the_same_again(studio: Service, priors: dict[str, str]) -> None:
    request = studio.request(studio.finished()[0])
    assert request_of(form_of(request, priors), priors) == request


def test_a_job_whose_settings_nobody_can_read_is_shown_nevertheless(service: Service) -> None:
    (id,) = service.submit(Form("a mug", prior="tiny", seed=5))
    with service.store.database.write() as db:
        db.execute('UPDATE settings SET request = \'{"of": "another version"}\'')
    run = service.find(id)
    assert run is not None and service.asked(run) == ("a mug", 5)
    with pytest.raises(RunError):
        service.request(run)
    new = frame(service, id, "", {})
    assert new is not None and "a mug" in new.pieces["strip"]


def test_a_folder_whose_request_nobody_can_read_has_its_own_name(service: Service, shelf: Shelf) -> None:
    (service.home / "strange").mkdir()
    for name in ("request.json", "report.json", "result.glb"):
        (service.home / "strange" / name).write_text("{}")
    run = service.find("strange")
    assert run is not None and service.asked(run) == ("strange", 0)
    path = files(service, shelf, "strange mesh 1", {})[0]["mesh"]
    assert path is not None and path.endswith("strange.glb")


def test_a_job_that_is_taken_off_the_list_meanwhile_has_no_place(service: Service) -> None:
    (id,) = service.submit(MUG)
    run = service.find(id)
    assert run is not None and service.position(run) == 1
    service.act("clear", id)
    assert service.position(run) is None and service.find(id) is None and service.done(id) is None


# Edits ----------------------------------------------------------------------------------------------------------------


def test_an_edit_of_a_result_is_queued(studio: Service, service: Service) -> None:
    run = studio.finished()[0].folder
    request = edit_request(run, Change("a blue cube", "DDS", steps=4, box=(-1.0, 0.0, -1.0, 1.0, 1.0, 1.0)))
    assert request.task is not None and request.task.region is not None
    assert tuple(request.task.region.low) == (-1.0, 0.0, -1.0) and request.steps == 4
    job = service.store.job(service.submit_checked(request))
    assert service.store.request(job) == request


def test_edits_that_cannot_be_are_refused(studio: Service, tmp_path: Path, small: Request) -> None:
    run = studio.finished()[0].folder
    with pytest.raises(ValueError, match="DDS"):
        edit_request(run, Change("a cube", "DDDS"))
    with pytest.raises(RunError):
        edit_request(tmp_path, Change("a cube"))
    with pytest.raises(UsageError, match="empty"):
        studio.submit_checked(edit_request(run, Change(" ")))
    assert groups_of(small) and len(set(groups_of(small))) == len(groups_of(small))
