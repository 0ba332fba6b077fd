"""Appearance: the numbers follow the tissue, not the scanner: gain, gamma and how the array lies leave them alone."""

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest

from medgen.infer.appearance import VIEW_MM, appearance, body_mask, size_of, view_of

Volume = npt.NDArray[np.float32]
AFFINE = np.diag([VIEW_MM, VIEW_MM, VIEW_MM, 1.0])


def _ball(*levels: float, shape: tuple[int, int, int] = (44, 52, 48)) -> Volume:
    """Shells of a brain's size, from the outside in, a little lopsided and noisy, in black air."""
    places = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in shape], indexing="ij"))
    radius = np.sqrt((places**2).sum(axis=0)) + 0.05 * places[0]
    noise = np.random.default_rng(0).normal(0, 0.02, shape)
    image = np.zeros(shape)
    for level, inner in zip(levels, np.linspace(1, 0, len(levels) + 1)[:-1], strict=True):
        image = np.where(radius < inner, level, image)
    return np.asarray(np.where(image > 0, image + noise, 0), dtype=np.float32)


FLUID, CORTEX, WHITE = 0.3, 0.6, 0.9
T1_LIKE = _ball(FLUID, CORTEX, WHITE, WHITE, FLUID)
FLAIR_LIKE = _ball(0.3, 0.9, 0.7, 0.7, 0.3)
T2_LIKE = _ball(0.9, 0.6, 0.3, 0.3, 0.9)


def _numbers(image: Volume, affine: npt.NDArray[np.float64] = AFFINE) -> dict[str, float]:
    return appearance(view_of(image, affine))


def test_white_matter_is_bright_and_deep_in_t1_only() -> None:
    t1, flair, t2 = _numbers(T1_LIKE), _numbers(FLAIR_LIKE), _numbers(T2_LIKE)
    for name in ("rise_from_dark", "bright_is_deep"):
        assert t1[name] > flair[name], name
    assert t1["bright_is_deep"] > t2["bright_is_deep"]


def test_gain_offset_and_gamma_change_nothing_but_the_histogram() -> None:
    plain, mapped = _numbers(T1_LIKE), _numbers(np.where(T1_LIKE > 0, 900 * T1_LIKE**1.3, 0).astype(np.float32))
    for name, value in plain.items():
        tolerance = 0.4 if name.startswith(("quantile", "skew")) else 0.08
        assert mapped[name] == pytest.approx(value, abs=tolerance), name


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_way_the_array_lies_changes_nothing(order: tuple[int, ...]) -> None:
    turned = np.zeros((4, 4))
    turned[3, 3] = 1
    for axis, original in enumerate(order):
        turned[original, axis] = -VIEW_MM if axis == 1 else VIEW_MM
    moved = np.flip(T1_LIKE.transpose(order), axis=1).copy()
    assert _numbers(moved, turned) == pytest.approx(_numbers(T1_LIKE), abs=1e-6)
    assert size_of(view_of(moved, turned)) == size_of(view_of(T1_LIKE, AFFINE))


def test_sizes_are_millimetres_whatever_the_spacing() -> None:
    coarse = size_of(view_of(T1_LIKE, np.diag([3.0, 3.0, 3.0, 1.0])))
    fine = size_of(view_of(np.repeat(T1_LIKE, 2, axis=2), np.diag([3.0, 3.0, 1.5, 1.0])))
    assert fine == pytest.approx(coarse, rel=0.05)
    assert coarse["longest_mm"] == pytest.approx(52 * 3 / 1.2, abs=7)


def test_the_body_is_one_piece_without_holes() -> None:
    image = _ball(0.8, 0.8, 0.0, 0.0, 0.0)
    image[:3, :3, :3] = 0.8  # a second, smaller piece
    body = body_mask(image)
    assert body[22, 26, 24]
    assert not body[1, 1, 1]


@pytest.mark.parametrize("image", [np.zeros((9, 8, 7), np.float32), np.ones((4, 4, 1), np.float32)])
def test_nothing_to_see_gives_no_numbers(image: Volume) -> None:
    assert _numbers(image) == {}


def test_one_slice_is_looked_at_without_complaint() -> None:
    numbers = _numbers(np.repeat(T1_LIKE[:, :, 20:21], 1, axis=2))
    assert all(np.isfinite(value) for value in numbers.values())
