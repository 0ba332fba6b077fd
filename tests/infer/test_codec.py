"""Scans stored as latents."""

from pathlib import Path

import numpy as np
import pytest

from medgen.errors import BundleError, UnreadableError
from medgen.geometry import Grid
from medgen.infer.codec import StoredCode, concept_vector, load_code, quantised, require_model, slerp, summary_of

GRID, SOURCE = Grid((8, 12, 8), np.diag([1.0, 1.0, 1.0, 1.0])), Grid((10, 9, 8), np.diag([-2.0, 1.5, 3.0, 1.0]))


def code(seed: int = 0, sha: str = "a" * 64, shape: tuple[int, ...] = (4, 2, 3, 2)) -> StoredCode:
    rng = np.random.default_rng(seed)
    latent, steps = quantised(rng.normal(size=shape), np.full(shape, 0.05))
    return StoredCode(latent, steps, GRID, SOURCE, 117.5, "brain", sha, {"contrast": "FLAIR"})


def test_written_and_read_it_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "one.npz").write_bytes(code().to_bytes())
    read = load_code(tmp_path / "one.npz")
    np.testing.assert_array_equal(read.latent, code().latent)
    assert (read.unit, read.bundle, read.weights_sha256, read.facts) == (
        117.5,
        "brain",
        "a" * 64,
        {"contrast": "FLAIR"},
    )
    assert read.grid.differs_from(GRID) == read.source.differs_from(SOURCE) == ""
    assert read.tensor.shape == (1, 4, 2, 3, 2)


def test_it_is_stored_as_finely_as_the_encoder_is_sure() -> None:
    rng = np.random.default_rng(0)
    latent, spread = rng.normal(size=(3, 40)), np.array([[0.01], [0.1], [1.0]]) * np.ones((3, 40))
    stored, steps = quantised(latent, spread)
    np.testing.assert_allclose(steps, [0.01, 0.1, 1.0], rtol=1e-5)
    assert np.all(np.abs(stored - latent) <= steps[:, None] / 2 + 1e-6)


def test_large_numbers_still_fit() -> None:
    stored, _ = quantised(np.array([[1e6, -1e6, 3.0]]), np.full((1, 3), 1e-6))
    np.testing.assert_allclose(stored[0, :2], [1e6, -1e6], rtol=1e-4)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UnreadableError, match=r"bad\.npz: expected a latent"):
        load_code(tmp_path / "bad.npz")


def test_a_pickle_or_another_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", steps=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", steps=np.array([{"a": 1}], dtype=object))
    for name in ("other", "pickle"):
        with pytest.raises(UnreadableError, match="expected a latent"):
            load_code(tmp_path / f"{name}.npz")


def test_another_models_latent_is_refused() -> None:
    require_model(code(), "brain", "a" * 64)
    with pytest.raises(BundleError, match="weights bbbbbbbbbbbb, got one of brain with weights aaaaaaaaaaaa"):
        require_model(code(), "brain", "b" * 64)


def test_slerp_begins_and_ends_where_it_should_and_keeps_its_length() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 500))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, atol=1e-6)
    assert all(np.linalg.norm(slerp(a, b, t)) == pytest.approx(1.0, abs=1e-5) for t in (0.25, 0.5, 0.75))
    np.testing.assert_allclose(slerp(a, a, 0.3), a, atol=1e-6)
    np.testing.assert_allclose(slerp(np.zeros(3), np.ones(3), 0.5), np.full(3, 0.5))


def test_a_concept_is_what_one_group_has_and_the_other_lacks() -> None:
    base = [code(seed) for seed in range(4)]
    shift = np.zeros_like(base[0].latent)
    shift[1] = 2.0
    having = [one.moved(one.latent + shift) for one in base]
    np.testing.assert_allclose(concept_vector(having, base), shift, atol=1e-5)
    with pytest.raises(UnreadableError, match="one shape"):
        concept_vector([code()], [code(shape=(4, 2, 2, 2))])
    with pytest.raises(BundleError, match="weights"):
        concept_vector([code()], [code(sha="b" * 64)])


def test_a_summary_has_one_length_whatever_the_size_of_the_code() -> None:
    assert len(summary_of(code())) == len(summary_of(code(shape=(4, 5, 5, 5)))) == 8
    assert len(summary_of(code(shape=(4,)))) == 4
