"""The splat PLY that other programs read: its layout byte by byte, the way back, and files that are none."""

import struct
from pathlib import Path

import pytest
import torch

from representations.splat_scene import SplatScene
from studio.export.splat_ply import load_splat_ply, splat_ply_bytes


def cloud(n: int = 5, k: int = 4) -> SplatScene:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return SplatScene(draw(n, 3), draw(n, 3), draw(n, 4), draw(n), draw(n, k, 3))


@pytest.mark.parametrize("harmonics", [1, 4, 9, 16])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_cloud_comes_back_to_the_bit(harmonics: int, count: int, tmp_path: Path):
    scene, path = cloud(count, harmonics), tmp_path / "splats.ply"
    path.write_bytes(splat_ply_bytes(scene))
    again = load_splat_ply(path)
    for name in ("means", "log_scales", "quaternions", "logit_opacities", "sh"):
        assert torch.equal(getattr(scene, name), getattr(again, name)), name


def test_the_layout_is_the_common_one():
    """Degree 1: three f_dc, then nine f_rest with all of red's before green's, as every viewer reads them."""
    scene = cloud(2, 4)
    content = splat_ply_bytes(scene)
    header, body = content.split(b"end_header\n", 1)
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2".split() + [f"f_rest_{i}" for i in range(9)]
    names += "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    expected = ["ply", "format binary_little_endian 1.0", "element vertex 2", *(f"property float {n}" for n in names)]
    assert header.decode().splitlines() == expected
    assert len(body) == 2 * 4 * len(names)
    second = dict(zip(names, struct.unpack_from(f"<{len(names)}f", body, 4 * len(names)), strict=True))
    assert second["x"] == scene.means[1, 0] and second["opacity"] == scene.logit_opacities[1]
    assert second["scale_2"] == scene.log_scales[1, 2] and second["rot_0"] == scene.quaternions[1, 0]
    assert second["f_dc_1"] == scene.sh[1, 0, 1] and second["nx"] == second["nz"] == 0
    assert second["f_rest_0"] == scene.sh[1, 1, 0] and second["f_rest_2"] == scene.sh[1, 3, 0]
    assert second["f_rest_3"] == scene.sh[1, 1, 1] and second["f_rest_8"] == scene.sh[1, 3, 2]


def test_order_comments_and_strange_properties_do_not_matter(tmp_path: Path):
    scene, path = cloud(3, 1), tmp_path / "other.ply"
    header, body = splat_ply_bytes(scene).split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    shuffled = [
        *lines[:2],
        "comment made elsewhere",
        lines[2],
        *reversed(lines[3:]),
        "property float filter",
        "end_header",
    ]
    table = torch.frombuffer(bytearray(body), dtype=torch.float32).view(3, -1).flip(1)
    table = torch.cat([table, torch.full((3, 1), 7.0)], 1).contiguous()
    path.write_bytes("\n".join([*shuffled, ""]).encode() + table.numpy().tobytes())
    again = load_splat_ply(path)
    assert torch.equal(scene.sh, again.sh) and torch.equal(scene.quaternions, again.quaternions)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: b"glTF" + c, "not a PLY"),
        (lambda c: c.replace(b"end_header", b"end_of_it!"), "not a PLY"),
        (lambda c: c[:-1], "cut short"),
        (lambda c: c.replace(b"little_endian", b"big_endian"), "little endian"),
        (lambda c: c.replace(b"float opacity", b"float opaqueness"), "lacks opacity"),
        (lambda c: c.replace(b"f_rest_8", b"other_08"), "fit no degree"),
        (lambda c: c.replace(b"float nx", b"uchar nx"), "must be a float"),
        (lambda c: c.replace(b"vertex 2", b"vertex -2"), "begin with its vertices"),
    ],
)
def test_what_is_no_cloud_is_refused_in_words(change, words: str, tmp_path: Path):
    path = tmp_path / "broken.ply"
    path.write_bytes(change(splat_ply_bytes(cloud(2, 4))))
    with pytest.raises(ValueError, match=words):
        load_splat_ply(path)
