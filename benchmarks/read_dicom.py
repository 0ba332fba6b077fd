"""How long a clean CT series takes to read: medgen's VolumeReader against MONAI's PydicomReader.

Each reader gets the same folder inside `LoadImage`, so that both make the same MetaTensor. Rounds are interleaved, so
other work on the machine slows both alike; medians and their ratio to PydicomReader are printed as JSON.

    python benchmarks/read_dicom.py --slices 120 --size 512 --rounds 9
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from monai.data import PydicomReader
from monai.transforms import LoadImage

from medgen.read.reader import VolumeReader
from medgen.simulate.dicom import write_series


def write_clean_series(folder: Path, size: int, slices: int) -> None:
    """Writes an oblique CT series of noise with unequal spacing."""
    rng = np.random.default_rng(0)
    voxels = rng.normal(40.0, 200.0, (size, size, slices)).astype(np.float32)
    turn = np.radians(12.0)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-0.7, -0.8, 1.5])
    affine[:3, 3] = (120.0, 130.0, -90.0)
    write_series(folder, voxels, affine, "CT")


def main() -> None:
    """Times the readers and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=120)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    readers = {"medgen": VolumeReader(), "pydicom": PydicomReader()}
    loaders = {name: LoadImage(reader=reader) for name, reader in readers.items()}
    with tempfile.TemporaryDirectory() as folder:
        write_clean_series(Path(folder), arguments.size, arguments.slices)
        means = {name: float(load(folder).mean()) for name, load in loaders.items()}  # and warms the disk cache
        seconds: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(arguments.rounds):
            for name, load in loaders.items():
                start = time.perf_counter()
                load(folder)
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    report = {
        "series": f"{arguments.size}x{arguments.size}x{arguments.slices}",
        "rounds": arguments.rounds,
        "median_seconds": {name: round(value, 3) for name, value in medians.items()},
        "times_pydicom": {name: round(value / medians["pydicom"], 2) for name, value in medians.items()},
        "mean_voxel": means,
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
