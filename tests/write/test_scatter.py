"""Points in the plane as a picture: each kind in its own colour, which a legend names."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from medgen.write.scatter import write_scatter

PLACES = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
BLUE, RED, GREEN = (30, 90, 170), (200, 60, 40), (40, 150, 70)
DOT = np.pi * 6**2  # pixels of a point


def drawn(path: Path, kinds: tuple[str, ...] = (), names: tuple[str, ...] = ("",) * 4) -> npt.NDArray[np.uint8]:
    write_scatter(PLACES, names, ("right", "up"), path / "p.png", kinds)
    with Image.open(path / "p.png") as picture:
        return np.asarray(picture)


def of_colour(page: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    return np.asarray((page == colour).all(axis=-1))


def test_without_kinds_all_points_have_one_colour_and_there_is_no_legend(tmp_path: Path) -> None:
    page = drawn(tmp_path)
    assert of_colour(page, BLUE).sum() == pytest.approx(4 * DOT, rel=0.3)
    assert not of_colour(page, RED).any()
    assert not of_colour(page[:60], BLUE).any()


def test_each_kind_has_its_colour_as_often_as_it_has_points_and_once_in_the_legend(tmp_path: Path) -> None:
    page = drawn(tmp_path, ("normal", "fluid", "normal", "drusen"))
    dots = {kind: of_colour(page, colour) for kind, colour in (("drusen", BLUE), ("fluid", RED), ("normal", GREEN))}
    one = dots["drusen"].sum() / 2
    assert one == pytest.approx(DOT, rel=0.3)
    assert [dots[kind].sum() / one for kind in ("drusen", "fluid", "normal")] == [2, 2, 3]
    # In the legend, above the frame, from left to right.
    columns = [np.flatnonzero(dots[kind][:60].any(axis=0)) for kind in ("drusen", "fluid", "normal")]
    assert columns[0].max() < columns[1].min()
    assert columns[1].max() < columns[2].min()


def test_points_lie_where_they_belong_in_the_colour_of_their_kind(tmp_path: Path) -> None:
    page = drawn(tmp_path, ("a", "b", "b", "b"))[60:]
    rows, columns = np.nonzero(of_colour(page, BLUE))
    assert rows.mean() > 0.8 * len(page)  # the origin: below, on the left
    assert columns.mean() < 0.2 * page.shape[1]


def test_the_legend_names_the_kinds(tmp_path: Path) -> None:
    plain = drawn(tmp_path)
    named, other = drawn(tmp_path, ("fluid",) * 4), drawn(tmp_path, ("serous",) * 4)
    assert np.array_equal(named[60:], plain[60:])
    assert not np.array_equal(named[:60], plain[:60])
    assert not np.array_equal(named[:60], other[:60])


def test_names_do_not_hang_on_kinds(tmp_path: Path) -> None:
    page = drawn(tmp_path, ("a", "a", "b", "b"), names=("one", "two", "three", "four"))
    assert (page != drawn(tmp_path, ("a", "a", "b", "b"))).any()
    assert of_colour(page, RED).sum() > 2 * DOT * 0.7


def test_more_kinds_than_colours_begin_again(tmp_path: Path) -> None:
    places = np.random.default_rng(0).random((7, 2))
    write_scatter(places, [""] * 7, ("x",), tmp_path / "p.png", list("abcdefg"))
    with Image.open(tmp_path / "p.png") as picture:
        page = np.asarray(picture)
    assert of_colour(page[90:], BLUE).sum() > 1.4 * of_colour(page[90:], RED).sum()


def test_a_kind_for_every_point_or_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        drawn(tmp_path, ("a", "b"))
