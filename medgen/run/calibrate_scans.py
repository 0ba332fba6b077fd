"""Fits the reference of a bundle that scores B-scans: scores of whole normal scans, by weights that never saw them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medgen.errors import NoInputError
from medgen.geometry import spacing_mm
from medgen.infer.bscans import ScoreBScansd
from medgen.infer.normal_scans import NormalScans
from medgen.infer.reference import Healthy
from medgen.infer.regions import REGIONS_KEY, SCAN_KEY
from medgen.read.reader import read_image
from medgen.run.bundle import OpenBundle
from medgen.run.calibrate import Control, LeaveOut, Listen, costing_itself, require_controls, scored, with_weights


def scores_bscans(bundle: OpenBundle) -> bool:
    """Says whether a bundle scores B-scans."""
    return any(isinstance(step, ScoreBScansd) for step in bundle.postprocessing.transforms)


def fit_normal_scans(
    bundle: OpenBundle,
    controls: Sequence[Control],
    *,
    unseen: Mapping[str, Path] | None = None,
    listen: Listen = lambda what, number, total: None,
    leave_out: LeaveOut = lambda what, error: None,
) -> NormalScans:
    """Scores normal scans and their parts.

    Args:
        bundle: a scoring one, opened without its reference.
        controls: normal scans.
        unseen: by patient, weights of a model that was not trained on him.
        listen: told of progress.
        leave_out: told of a scan that cannot be used; it costs itself alone.

    Raises:
        NoInputError: there are no controls, or none of a patient of whom weights are given, or none could be used.
        BundleError: the bundle does not score.
    """
    require_controls(bundle, controls, unseen or {})
    people: list[Healthy] = []
    sides: list[list[float]] = []
    for number, (control, sha256) in enumerate(with_weights(bundle, controls, unseen or {})):
        listen(control.scan.name, number, len(controls))
        with costing_itself(control.scan.name, leave_out):
            image = read_image(control.scan)
            item = scored(bundle, control.scan, image)
            parts = tuple(region.evidence for region in item[REGIONS_KEY])
            people.append(Healthy(control.patient, parts, float(item[SCAN_KEY]), sha256))
            sides.append(sorted(spacing_mm(image.affine.numpy()).tolist()))
    if not people:
        raise NoInputError(f"expected normal scans, got none of {len(controls)} that can be used")
    return NormalScans(
        weights_sha256=bundle.weights_sha256,
        score=bundle.scoring["score"],
        contrast=bundle.scoring["contrast"],
        finest_mm=(min(side[0] for side in sides), max(side[0] for side in sides)),
        coarsest_mm=(min(side[-1] for side in sides), max(side[-1] for side in sides)),
        heads=False,
        patients=tuple(people),
        simulated=(),
    )
