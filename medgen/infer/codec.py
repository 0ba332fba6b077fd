"""A scan stored as its latent, and what can be done with latents: walk between two, along one, or in a direction.

A code is kept as whole numbers of a step, as fine as the encoder is sure: what lies within the spread of the posterior
makes no difference to the decoder, and need not be stored. It knows the model that it is of, and no other decodes it.
"""

import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medgen.errors import BundleError, UnreadableError
from medgen.geometry import Grid

Array = npt.NDArray[np.float32]

SCHEMA = "medgen-latent-1"
_PARTS = {"steps", "sizes", "affine", "shape", "source_affine", "source_shape", "facts"}
_FINEST = 1e-4


@dataclass(frozen=True, eq=False)
class StoredCode:
    """The latent of one scan.

    Attributes:
        latent: `(L, ...)`, a vector or a grid of vectors.
        steps: size of the steps in which each of the L numbers is kept, `(L,)`.
        grid: of the volume that the code decodes to.
        source: of the scan that it was made from.
        unit: what 1 of the network's image is in the scan's own values.
        bundle: name of the bundle.
        weights_sha256: of its weights.
        facts: what else is known, such as the contrast; JSON types.
    """

    latent: Array
    steps: Array
    grid: Grid
    source: Grid
    unit: float
    bundle: str
    weights_sha256: str
    facts: dict[str, Any]

    @property
    def tensor(self) -> Tensor:
        """The latent as the network takes it, `(1, L, ...)`."""
        return torch.from_numpy(self.latent)[None]

    def moved(self, latent: npt.ArrayLike) -> "StoredCode":
        """Returns a code like this one with another latent of the same shape."""
        values = np.asarray(latent, dtype=np.float32)
        if values.shape != self.latent.shape:
            raise UnreadableError(
                f"expected a latent of shape {self.latent.shape}, got {values.shape}; encode all with the same --box"
            )
        return replace(self, latent=values, steps=np.maximum(self.steps, _finest_for(values)))

    def to_bytes(self) -> bytes:
        """Returns the code as a `.npz` without pickles, compressed."""
        facts = {"schema": SCHEMA, "bundle": self.bundle, "weights_sha256": self.weights_sha256, "unit": self.unit}
        stream = io.BytesIO()
        np.savez_compressed(
            stream,
            steps=np.rint(self.latent / _beside(self.steps, self.latent)).astype(np.int16),
            sizes=self.steps.astype(np.float32),
            affine=self.grid.affine,
            shape=np.asarray(self.grid.shape),
            source_affine=self.source.affine,
            source_shape=np.asarray(self.source.shape),
            facts=np.frombuffer(json.dumps({**self.facts, **facts}).encode(), dtype=np.uint8),
        )
        return stream.getvalue()


def quantised(latent: npt.ArrayLike, spread: npt.ArrayLike) -> tuple[Array, Array]:
    """Returns a latent in steps of the encoder's usual spread, and these steps.

    Args:
        latent: means `(L, ...)`.
        spread: standard deviations, same shape.
    """
    values, wide = np.asarray(latent, dtype=np.float32), np.asarray(spread, dtype=np.float32)
    usual = np.sqrt(np.square(wide).reshape(len(wide), -1).mean(axis=1))
    steps = np.maximum(np.maximum(usual, _finest_for(values)), _FINEST).astype(np.float32)
    beside = _beside(steps, values)
    return np.asarray(np.rint(values / beside) * beside, dtype=np.float32), steps


def load_code(path: Path) -> StoredCode:
    """Reads a code.

    Raises:
        UnreadableError: the file is none.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as parts:
            missing = _PARTS - set(parts.files)
            if missing:
                raise UnreadableError(f"{path.name}: expected a latent of medgen, but it lacks {min(missing)}")
            facts = json.loads(bytes(parts["facts"]).decode())
            if facts.pop("schema") != SCHEMA:
                raise UnreadableError(f"{path.name}: expected a latent of schema {SCHEMA}")
            steps = parts["sizes"].astype(np.float32)
            whole = parts["steps"].astype(np.float32)
            return StoredCode(
                latent=np.asarray(whole * _beside(steps, whole), dtype=np.float32),
                steps=steps,
                grid=_grid(parts["shape"], parts["affine"]),
                source=_grid(parts["source_shape"], parts["source_affine"]),
                unit=float(facts.pop("unit")),
                bundle=str(facts.pop("bundle")),
                weights_sha256=str(facts.pop("weights_sha256")),
                facts=facts,
            )
    except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, BadZipFile, zlib.error) as error:
        raise UnreadableError(f"{path.name}: expected a latent of medgen (.npz), got {type(error).__name__}") from error


def require_model(code: StoredCode, bundle: str, weights_sha256: str) -> None:
    """Refuses a code of another model: its numbers would mean something else.

    Raises:
        BundleError: it is of other weights.
    """
    if code.weights_sha256 != weights_sha256:
        raise BundleError(
            f"expected a latent of {bundle} with weights {weights_sha256[:12]}, got one of {code.bundle} with weights "
            f"{code.weights_sha256[:12]}; decode it with the model that made it, or encode the scan again"
        )


def slerp(first: npt.ArrayLike, second: npt.ArrayLike, share: float) -> Array:
    """Returns the latent at `share` (0 to 1) of the way along the great arc between two.

    Latents of N(0, 1) lie on a sphere's shell; a straight line would cut through its empty middle.

    Source: Shoemake, SIGGRAPH 1985; for latents, White, "Sampling generative networks", 2016.

    Example:
        >>> [round(number, 4) for number in slerp([1.0, 0.0], [0.0, 1.0], 0.5).tolist()]
        [0.7071, 0.7071]
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    angle = np.arccos(np.clip((a * b).sum() / lengths, -1, 1)) if lengths > 0 else 0.0
    if np.sin(angle) < 1e-6:
        return np.asarray((1 - share) * a + share * b, dtype=np.float32)
    way = np.sin((1 - share) * angle) * a + np.sin(share * angle) * b
    return np.asarray(way / np.sin(angle), dtype=np.float32)


def concept_vector(having: Sequence[StoredCode], lacking: Sequence[StoredCode]) -> Array:
    """Returns the mean code of those who have something, less the mean of those who lack it.

    Source: attribute vectors, Larsen et al., "Autoencoding beyond pixels using a learned similarity metric", ICML 2016.

    Raises:
        BundleError: codes of several models.
        UnreadableError: codes of several shapes.
    """
    codes = [*having, *lacking]
    for code in codes[1:]:
        require_model(code, codes[0].bundle, codes[0].weights_sha256)
        if code.latent.shape != codes[0].latent.shape:
            raise UnreadableError(
                f"expected latents of one shape, got {codes[0].latent.shape} and {code.latent.shape}; "
                "encode all with the same --box"
            )
    means = [np.mean([code.latent for code in group], axis=0) for group in (having, lacking)]
    return np.asarray(means[0] - means[1], dtype=np.float32)


def summary_of(code: StoredCode) -> Array:
    """Returns what a code is on the whole, whatever its size: mean and spread of each of its L numbers, `(2 L,)`."""
    flat = code.latent.reshape(len(code.latent), -1)
    return np.concatenate([flat.mean(axis=1), flat.std(axis=1)]) if flat.shape[1] > 1 else flat[:, 0]


def _finest_for(latent: Array) -> Array:
    """The finest steps in which 16 bits hold a latent."""
    largest = np.abs(latent).reshape(len(latent), -1).max(axis=1)
    return np.asarray(largest / np.iinfo(np.int16).max, dtype=np.float32)


def _beside(steps: Array, latent: Array) -> Array:
    return steps.reshape(-1, *[1] * (latent.ndim - 1))


def _grid(shape: npt.ArrayLike, affine: npt.ArrayLike) -> Grid:
    x, y, z = (int(side) for side in np.asarray(shape))
    return Grid((x, y, z), np.asarray(affine, dtype=np.float64))
