"""Signal, noise and shading against their closed forms."""

import numpy as np
import pytest

from medgen.simulate.sample import head_grid, sagittal
from medgen.simulate.signal import (
    AIR_HU,
    RELAXATION,
    add_rician_noise,
    ct_image,
    gradient_echo,
    inversion_recovery,
    mr_image,
    receive_field,
    spin_echo,
)


@pytest.mark.parametrize("tesla", [1.5, 3.0])
@pytest.mark.parametrize("name", ["csf", "grey", "white", "fat", "muscle"])
def test_signal_equations_agree_where_their_theory_does(tesla: float, name: str) -> None:
    tissue = RELAXATION[tesla][name]
    fully_relaxed = spin_echo(tissue, tr_ms=1e7, te_ms=0)
    assert fully_relaxed == pytest.approx(tissue.density)
    # An inversion so long ago that it is forgotten leaves the spin echo; the Ernst angle maximises a gradient echo.
    assert inversion_recovery(tissue, tr_ms=1e7, ti_ms=1e6, te_ms=20) == pytest.approx(
        spin_echo(tissue, tr_ms=1e7, te_ms=20)
    )
    ernst = np.degrees(np.arccos(np.exp(-20 / tissue.t1_ms)))
    best = gradient_echo(tissue, tr_ms=20, te_ms=3, flip_degrees=ernst)
    assert best > gradient_echo(tissue, tr_ms=20, te_ms=3, flip_degrees=ernst * 1.2)
    assert best > gradient_echo(tissue, tr_ms=20, te_ms=3, flip_degrees=ernst * 0.8)


def test_a_voxel_of_two_tissues_shows_their_mean() -> None:
    half = {"grey": np.full((1, 1, 1), 0.5, np.float32), "white": np.full((1, 1, 1), 0.5, np.float32)}
    expected = (RELAXATION[1.5]["grey"].density + RELAXATION[1.5]["white"].density) / 2
    assert mr_image(half, lambda tissue: tissue.density).item() == pytest.approx(expected)
    assert ct_image(half).item() == pytest.approx((37 + 28) / 2, abs=1e-3)


def test_air_is_air() -> None:
    nothing = {"bone": np.zeros((2, 3, 4), np.float32)}
    assert np.all(ct_image(nothing) == AIR_HU)
    assert np.all(mr_image(nothing, lambda tissue: tissue.density) == 0)


def test_noise_is_rician() -> None:
    rng = np.random.default_rng(0)
    background = add_rician_noise(np.zeros((60, 60, 30), np.float32), 10.0, rng)
    bright = add_rician_noise(np.full((60, 60, 30), 500.0, np.float32), 10.0, rng)
    assert background.mean() == pytest.approx(10 * np.sqrt(np.pi / 2), rel=0.02)  # Rayleigh
    assert bright.mean() == pytest.approx(np.hypot(500, 10), rel=0.001)
    assert bright.std() == pytest.approx(10, rel=0.02)


def test_shading_is_positive_smooth_and_fixed_in_space() -> None:
    grid = head_grid((20, 24, 18), (9.0, 8.5, 10.0), tilt_degrees=20.0)
    field = receive_field(grid, strength=0.3, seed=5)
    assert field.min() > 0
    assert np.abs(np.diff(np.log(field), axis=0)).max() < 0.3
    turned = receive_field(sagittal(grid), strength=0.3, seed=5)
    np.testing.assert_allclose(turned, field.transpose(1, 2, 0)[::-1, ::-1, ::-1], rtol=1e-3)
