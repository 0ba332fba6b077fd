"""Peak memory of `medgen run` by the size of the volume: what `PEAK_BYTES_PER_VOXEL` in `medgen.read.memory` stands on.

python benchmarks/memory.py [--sides 256 384 512]

Each side gives a simulated head of side^3 voxels over 205 mm, and a process of its own. The slope between the smallest
and the largest is what a voxel costs; the rest is the program, the weights and the network.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from medgen.simulate.sample import head_grid, simulate_t1

_EXTENT_MM = 205.0
_COARSE = 103  # voxels along each axis that are simulated; each is repeated to the size asked for


def _write_head(side: int, file: Path) -> None:
    head = simulate_t1(head_grid((_COARSE,) * 3, (_EXTENT_MM / _COARSE,) * 3), seed=1, head=True)
    index = np.arange(side) * _COARSE // side
    affine = np.diag([_EXTENT_MM / side] * 3 + [1.0])
    nib.save(nib.Nifti1Image(head[np.ix_(index, index, index)].astype(np.int16), affine), file)


def _peak_bytes(file: Path, output: Path) -> int:
    """The largest resident memory of any child so far: right for volumes that grow."""
    command = [sys.executable, "-m", "medgen", "run", "brain_t1_to_t2", "-i", str(file), "-o", str(output)]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own command
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def main() -> None:
    """Runs each size and says what a voxel costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 384, 512])
    sides = sorted(parser.parse_args().sides)
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for side in sides:
            file = Path(folder, f"head{side}.nii")
            _write_head(side, file)
            peaks.append(_peak_bytes(file, Path(folder, f"out{side}")))
            sys.stdout.write(f"{side}^3 voxels: {peaks[-1] / 1e9:.2f} GB\n")
    if len(sides) > 1:
        slope = (peaks[-1] - peaks[0]) / (sides[-1] ** 3 - sides[0] ** 3)
        sys.stdout.write(f"{slope:.1f} bytes a voxel, {(peaks[0] - slope * sides[0] ** 3) / 1e9:.2f} GB besides\n")


if __name__ == "__main__":
    main()
