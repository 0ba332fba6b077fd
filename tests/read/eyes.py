"""B-scans by formula: bands of brightness that bend, saved as pictures of every kind."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SHAPE = (96, 80)  # lateral, depth


def bscan(seed: int = 0, shape: tuple[int, int] = SHAPE, highest: int = 255) -> npt.NDArray[np.uint16]:
    """Returns `(lateral, depth)` values from 0 to `highest`: bright bands below a dark vitreous."""
    x, y = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    top = 0.3 * shape[1] + 4 * np.sin(2 * np.pi * (x / shape[0] + 0.13 * seed))
    depth = (y - top) / (0.4 * shape[1])
    bands = np.where((depth > 0) & (depth < 1), 0.35 + 0.6 * np.cos(9 * depth) ** 2, 0.05)
    return np.rint(np.clip(bands, 0, 1) * highest).astype(np.uint16)


def volume(count: int = 5, highest: int = 255) -> npt.NDArray[np.uint16]:
    """Returns `(lateral, depth, B-scans)`, each B-scan another."""
    return np.stack([bscan(seed, highest=highest) for seed in range(count)], axis=-1)


def picture(values: npt.NDArray[np.uint16]) -> Image.Image:
    """Returns a grey picture of one B-scan, of 8 bits where that holds its values."""
    return Image.fromarray(np.ascontiguousarray(values.T.astype(np.uint8 if values.max() < 256 else np.uint16)))


def save(path: Path, values: npt.NDArray[np.uint16], **options: object) -> Path:
    """Saves a B-scan, or a volume as the pages of a TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [picture(values[..., k]) for k in range(values.shape[2])] if values.ndim == 3 else [picture(values)]
    more = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
    pages[0].save(path, **more, **options)
    return path
