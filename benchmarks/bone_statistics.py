"""How much of the body a CT shows as bone, and how dense: to hold synthetic heads against a real one of somebody else.

python benchmarks/bone_statistics.py FOLDER [FOLDER ...]

Prints for each NIfTI file or DICOM series below the folders (CT in HU) the share of the body above 250 HU and the
5th, 25th, 50th, 75th and 95th percentile of what is. Slices that do not form a regular grid are regridded first.
Results of medgen are not looked for as inputs: copy the CT out of their folder.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from medgen.metrics.hounsfield import BONE_HU, body_mask
from medgen.read.discover import find_cases
from medgen.read.reader import read_image

_PERCENTILES = (5, 25, 50, 75, 95)


def main() -> None:
    """Reads each volume and prints one line of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    for folder in parser.parse_args().folders:
        cases = find_cases(folder, salt=b"", allow_irregular=True)
        if not cases:
            sys.exit(f"{folder}: expected CT as NIfTI or DICOM, found none; results of medgen must be copied out first")
        for case in cases:
            ct = read_image(case, allow_irregular=True).numpy().squeeze()
            body = body_mask(ct)
            bone = ct[body & (ct > BONE_HU)]
            levels = " ".join(f"{value:.0f}" for value in np.percentile(bone, _PERCENTILES))
            share = 100 * bone.size / body.sum()
            sys.stdout.write(f"{case.name}: {share:.1f} % of the body above {BONE_HU:.0f} HU; {levels} HU\n")


if __name__ == "__main__":
    sys.exit(main())
