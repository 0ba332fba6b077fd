"""FLAIR and T2 from tissue fractions."""

import numpy as np
import pytest

from medgen.errors import IntensityError
from medgen.simulate.brain_mr import random_brain_mr


def blocks() -> dict[str, np.ndarray]:
    """A third of the volume of each tissue, and air around them."""
    shape = (36, 20, 20)
    parts = {name: np.zeros(shape, np.float32) for name in ("csf", "grey", "white")}
    for index, name in enumerate(parts):
        parts[name][2 + 10 * index : 12 + 10 * index, 2:18, 2:18] = 1
    return parts


@pytest.mark.parametrize("seed", range(12))
def test_fluid_is_dark_on_flair_and_bright_on_t2_and_grey_is_brighter_than_white(seed: int) -> None:
    parts = blocks()
    for contrast in ("FLAIR", "T2w"):
        image = random_brain_mr(parts, contrast, np.random.default_rng(seed))
        fluid, grey, white = (float(np.median(image[parts[name] > 0])) for name in ("csf", "grey", "white"))
        assert (fluid < 0.7 * white) if contrast == "FLAIR" else (fluid > 1.2 * grey)
        assert 0.8 * white < grey
        assert 0.7 * grey + 0.3 * white == pytest.approx(1.0, abs=0.25)


def test_outside_of_the_brain_it_is_exactly_empty() -> None:
    image = random_brain_mr(blocks(), "FLAIR", np.random.default_rng(0))
    assert np.all(image[:2] == 0)


def test_another_contrast_is_refused() -> None:
    with pytest.raises(IntensityError, match="FLAIR or T2w, got 'T1w'"):
        random_brain_mr(blocks(), "T1w", np.random.default_rng(0))  # type: ignore[arg-type]
