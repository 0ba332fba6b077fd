"""Rounded to the nearest, never truncated, never wrapped around; what cannot be stored is refused."""

import numpy as np
import pytest

from medgen.errors import OutputError
from medgen.write.rounding import Extent, extent_of, rounded


def test_rounding_is_to_the_nearest_integer_everywhere() -> None:
    image = np.random.default_rng(0).uniform(-900, 900, (7, 5, 3)).astype(np.float32)
    assert np.abs(rounded(image, np.int16) - image).max() <= 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_voxel_is_enough_to_refuse(bad: float) -> None:
    image = np.ones((3, 4, 5), dtype=np.float32)
    image[1, 2, 3] = bad
    with pytest.raises(OutputError, match="1 that are NaN or infinite"):
        extent_of(image)


def test_no_voxels_are_refused() -> None:
    with pytest.raises(OutputError, match="expected voxels"):
        extent_of(np.empty((0, 3, 3), dtype=np.float32))


def test_fitting_counts_the_rounding() -> None:
    assert Extent(-32768.4, 32767.4).fits(np.int16)
    assert not Extent(0, 32767.6).fits(np.int16)
    assert not Extent(-1, 10).fits(np.uint16)
