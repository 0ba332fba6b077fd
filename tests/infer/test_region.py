"""Which part of the body a CT shows: phantoms of each, the wrong modality, coarse pixels, and real scans."""

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.infer.region import CtCheck
from medgen.read.discover import find_cases
from medgen.read.reader import read_image

_SIDE_MM = 2.0


def _body(width_mm: float, depth_mm: float, *, lung: float = 0.0, bone_mm: float = 0.0, slices: int = 3) -> MetaTensor:
    """An ellipse of soft tissue, lungs that fill a share of its width, a rim of bone."""
    x, y = np.meshgrid(*[(np.arange(200) - 99.5) * _SIDE_MM] * 2, indexing="ij")
    radius = np.hypot(x / (width_mm / 2), y / (depth_mm / 2))
    plane = np.where(radius < 1, 40.0, -1000.0)
    plane[(radius < 0.9) & (np.abs(x) > (1 - lung) * width_mm / 2)] = -850.0
    plane[(radius < 1) & (radius > 1 - 2 * bone_mm / width_mm)] = 700.0
    volume = np.repeat(plane[None, ..., None], slices, axis=3).astype(np.float32)
    return MetaTensor(torch.from_numpy(volume), affine=np.diag([_SIDE_MM, _SIDE_MM, 5.0, 1.0]), meta={"modality": "CT"})


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize(
    ("region", "image"),
    [
        ("abdomen", {"width_mm": 330, "depth_mm": 240}),
        ("abdomen", {"width_mm": 330, "depth_mm": 240, "lung": 0.2}),
        ("chest", {"width_mm": 340, "depth_mm": 240, "lung": 0.75}),
        ("head", {"width_mm": 160, "depth_mm": 200, "bone_mm": 8}),
    ],
)
def test_a_body_is_told_by_its_slices_and_what_was_not_measured_is_flagged(
    region: str, image: dict[str, float], slices: int
) -> None:
    verdict = CtCheck(pixel_mm=(0.3, 2.5))(_body(**image, slices=slices))
    assert verdict.scores[f"is_{region}"] == 1
    assert verdict.flags == (() if region == "abdomen" else ("not-validated",))
    assert not CtCheck([region], pixel_mm=(0.3, 2.5))(_body(**image, slices=slices)).flags


def test_orientation_does_not_matter() -> None:
    image = _body(340, 240, lung=0.75)
    turned = MetaTensor(
        image.as_tensor().permute(0, 3, 1, 2).flip(1),
        affine=np.array([[0, _SIDE_MM, 0, 0], [0, 0, _SIDE_MM, 0], [-5.0, 0, 0, 0], [0, 0, 0, 1]]),
        meta={"modality": "CT"},
    )
    one, other = (CtCheck()(each).scores for each in (image, turned))
    assert one == pytest.approx(other, rel=0.02)


def test_a_scan_that_is_a_chest_in_part_was_not_measured_on() -> None:
    parts = [_body(340, 240, slices=8), _body(340, 240, lung=0.75, slices=6)]
    both = MetaTensor(torch.cat([part.as_tensor() for part in parts], dim=-1), affine=parts[0].affine)
    verdict = CtCheck(pixel_mm=(0.3, 2.5))(both)
    assert verdict.scores["chest_share"] == pytest.approx(3 / 7, abs=0.06)
    assert verdict.flags == ("not-validated",)
    assert not CtCheck(["abdomen", "chest"], pixel_mm=(0.3, 2.5))(both).flags


def test_thick_coronal_slices_are_too_coarse() -> None:
    plane = _body(330, 240, slices=60)[:, ::2, ::4, :]  # pixels of 2 x 5 mm, slices of 8 mm from front to back
    coronal = MetaTensor(plane.as_tensor(), affine=np.diag([4.0, 8.0, 5.0, 1.0]), meta={"modality": "CT"})
    verdict = CtCheck(pixel_mm=(0.3, 5.5))(coronal)
    assert verdict.scores["pixel_mm"] == 8
    assert verdict.flags == ("input-resolution",)


def test_a_cut_from_within_a_body_is_a_ct_where_its_header_says_so() -> None:
    inside = MetaTensor(torch.full((1, 100, 100, 3), 40.0), affine=np.diag([2.0, 2.0, 5.0, 1.0]))
    inside[:, 40:60] = -90.0
    check = CtCheck(pixel_mm=(0.3, 2.5))
    assert "input-modality" in check(inside).flags
    inside.meta["modality"] = "CT"
    assert "input-modality" not in check(inside).flags


def test_no_ct_coarse_pixels_and_air_alone_are_flagged() -> None:
    mr = _body(160, 200, bone_mm=8)
    mr.meta["modality"] = "MR"
    assert "input-modality" in CtCheck()(mr).flags
    assert "input-modality" in CtCheck()(_body(330, 240) + 1000).flags
    assert CtCheck()(_body(330, 240)).flags == ("input-resolution",)
    air = _body(0.01, 0.01)
    assert CtCheck(pixel_mm=(0.3, 2.5))(air).flags == ("not-validated",)


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
@pytest.mark.parametrize(
    ("place", "flags"),
    [
        ("ct/fnndsc-abdomen-80slices.nii.gz", {"not-validated"}),  # heart and lungs, whatever its name says
        ("ct/crlm-1004", set()),
        ("dicom/ge-head-ct-tilted", {"not-validated"}),
        ("brain_t1", {"input-modality"}),
    ],
)
def test_real_scans_are_what_they_are(place: str, flags: set[str], real_data: Path) -> None:
    cases = [
        c for c in find_cases(real_data / place, salt=b"", allow_irregular=True) if not c.excluded and not c.refused
    ]
    verdict = CtCheck()(read_image(cases[0], allow_irregular=True))
    assert flags <= set(verdict.flags)
    assert flags or not verdict.flags
