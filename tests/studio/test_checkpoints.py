"""Checkpoints: any tree survives, any damage is noticed, old ones go, a failed write leaves the old ones."""

import os

import pytest
import torch

from studio.checkpoints import Checkpoints, CorruptCheckpoint, read_state, write_atomically, write_state

TREE = {
    "step": 3,
    "weights": [torch.arange(4.0), torch.tensor(True)],
    "optimiser": {"state": {0: {"exp_avg": torch.ones(2), "step": torch.tensor(7.0)}}, "groups": [{"lr": 0.1}]},
    "empty": {},
    "nothing": None,
    "words": "tensors: a tale",
    "critic.memory": {
        "pictures": [{"latents": torch.zeros(2), "extra": {}}],
        "optimiser": {"state": {3: torch.ones(1)}},
    },
    "critic": {"memory": {"pictures": [{"latents": torch.ones(3)}]}},
}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_any_tree_survives(tmp_path):
    write_state(tmp_path / "state", TREE)
    assert same(read_state(tmp_path / "state"), TREE)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_any_damage_is_noticed(tmp_path, name, damage):
    write_state(tmp_path / "state", TREE)
    path = tmp_path / "state" / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[1] ^= 0xFF
        path.write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match="state"):
        read_state(tmp_path / "state")


def test_only_the_newest_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10):
        checkpoints.save(step, {"x": torch.tensor(step)})
    assert [int(p.name) for p in checkpoints.all()] == [2, 10]
    state, problems = checkpoints.newest()
    assert state is not None and state["step"] == 10 and not problems


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": torch.ones(3)})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(2, {"x": torch.zeros(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["0000001"]
    state, _ = checkpoints.newest()
    assert state is not None and torch.equal(state["x"], torch.ones(3))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_code_cannot_hide_in_a_checkpoint(tmp_path):
    with pytest.raises(TypeError, match="plain values"):
        write_state(tmp_path / "state", {"x": object()})
