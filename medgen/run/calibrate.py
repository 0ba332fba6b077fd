"""Fits the healthy reference of a scoring bundle, and tests what it promises: p-values that are uniform on health."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, ConcatItemsd, LoadImaged, Orientationd, SpatialResample
from scipy.ndimage import distance_transform_edt
from scipy.stats import binom, kstest

from medgen.case import Case, RegionScore
from medgen.errors import BundleError, InputError, IntensityError, MedgenError, NoInputError
from medgen.geometry import spacing_mm
from medgen.infer.bscans import ScoreBScansd
from medgen.infer.reference import FOREIGN, Healthy, HealthyReference
from medgen.infer.regions import EVIDENCE_KEY, REGIONS_KEY, SCAN_KEY, ScoreRegionsd, score_regions
from medgen.prepare.brain import FOUND_FLAG
from medgen.prepare.degrade import RandWindowd
from medgen.prepare.draws import FixedDraws
from medgen.prepare.lesion import RandBrainMrd
from medgen.provenance import file_sha256
from medgen.read.manifest import datalist_from_manifest, find_data_root, find_manifest
from medgen.read.reader import VolumeReader, flags_of, read_image
from medgen.run import predict
from medgen.run.bundle import OpenBundle
from medgen.run.job import one_case, one_truth
from medgen.run.weights import load_weights
from medgen.write.atomic import atomic_text

Listen = Callable[[str, int, int], None]
LeaveOut = Callable[[str, MedgenError], None]


@dataclass(frozen=True)
class Control:
    """A scan whose healthy tissue is scored.

    Attributes:
        patient: whose.
        scan: to score.
        lesions: a mask of what in it is not healthy, or None.
    """

    patient: str
    scan: Case
    lesions: Case | None = None


LESION_MARGIN_MM = 6.0  # around a lesion, of what is not taken for healthy: its own halo, and that of the smoothing
_TISSUES = ("csf", "grey", "white")
_AXES = (("L", "R"), ("P", "A"), ("I", "S"))
# People of the simulation differ in shape, too: more than their scans do in pose.
_SHAPE: Mapping[str, Any] = {"max_turn": 5.0, "max_scale": 0.06, "max_bend": 6.0}
NORMAL = "normal"  # class of a manifest's scan that shows nothing else
_ALARM = 0.05
_FIRST_SEED = 10_000  # far from the seeds of a training


@dataclass(frozen=True)
class Uniformity:
    """How p-values of held-out healthy regions are spread: uniformly, if the reference keeps its word.

    Attributes:
        who: whose regions.
        regions: how many.
        ks: largest distance between their distribution and the uniform one.
        ks_p: of the Kolmogorov-Smirnov test.
        alarms: share of p-values at or below 5 %.
        interval: in which that share lies with 95 % probability if the p-values are right, binomial.
    """

    who: str
    regions: int
    ks: float
    ks_p: float
    alarms: float
    interval: tuple[float, float]


def uniformity(who: str, p_values: npt.ArrayLike) -> Uniformity:
    """Tests p-values for uniformity."""
    values = np.asarray(p_values, dtype=np.float64)
    test = kstest(values, "uniform")
    low, high = binom.interval(0.95, len(values), _ALARM)
    alarms = float((values <= _ALARM).mean())
    return Uniformity(
        who, len(values), float(test.statistic), float(test.pvalue), alarms, (low / len(values), high / len(values))
    )


def fit_reference(
    bundle: OpenBundle,
    controls: Sequence[Control],
    *,
    unseen: Mapping[str, Path] | None = None,
    simulated: Sequence[MetaTensor] = (),
    listen: Listen = lambda what, number, total: None,
    leave_out: LeaveOut = lambda what, error: None,
) -> HealthyReference:
    """Scores the healthy tissue of patients, and simulated healthy brains.

    Args:
        bundle: a scoring one, opened without its reference.
        controls: scans and, where there are lesions, their masks.
        unseen: by patient, weights of a model that was not trained on him: scores of what a model was trained on are
            too low, and p-values against them too small.
        simulated: scans of healthy people who do not exist.
        listen: told of progress.
        leave_out: told of a scan that cannot be used or is not what the bundle takes; it costs itself alone.

    Raises:
        NoInputError: there are no controls, or none of a patient of whom weights are given, or none could be used.
        BundleError: the bundle does not score.
    """
    require_controls(bundle, controls, unseen or {})
    patients: dict[str, list[float]] = {}
    seen_by: dict[str, str] = {}
    sides: list[list[float]] = []
    heads = False
    total = len(controls) + len(simulated)
    for number, (control, sha256) in enumerate(with_weights(bundle, controls, unseen or {})):
        listen(control.scan.name, number, total)
        seen_by[control.patient] = sha256
        with costing_itself(control.scan.name, leave_out):
            image = read_image(control.scan)
            scores, found = healthy_regions(bundle, control, image)
            patients.setdefault(control.patient, []).extend(scores)
            sides.append(sorted(spacing_mm(np.asarray(image.affine)).tolist()))
            heads = heads or found
    if not any(patients.values()):
        raise NoInputError(
            f"expected healthy tissue in at least one of {len(controls)} scans, got none that can be used"
        )
    people = []
    for number, image in enumerate(simulated):
        listen(f"simulated {number}", len(controls) + number, total)
        with costing_itself(f"simulated {number}", leave_out):
            people.append(score_simulated(bundle, image, number))
    return HealthyReference(
        weights_sha256=bundle.weights_sha256,
        score=bundle.scoring["score"],
        contrast=bundle.scoring["contrast"],
        finest_mm=_span([shortest for shortest, *_ in sides]),
        coarsest_mm=_span([longest for *_, longest in sides]),
        heads=heads,
        patients=tuple(Healthy(name, tuple(scores), None, seen_by[name]) for name, scores in patients.items()),
        simulated=tuple(people),
    )


def require_controls(bundle: OpenBundle, controls: Sequence[Control], unseen: Mapping[str, Path]) -> None:
    """Refuses to calibrate on nothing.

    Raises:
        NoInputError: there are no controls, or none of a patient of whom weights are given.
        BundleError: the bundle does not score.
    """
    if not bundle.scoring:
        raise BundleError(f"expected a bundle that declares a healthy reference (`reference`), got {bundle.name}")
    strangers = sorted(set(unseen) - {control.patient for control in controls})
    if not controls or strangers:
        raise NoInputError(f"expected controls to calibrate on, got {', '.join(strangers) or 'none'} without a scan")


def with_weights(
    bundle: OpenBundle, controls: Sequence[Control], unseen: Mapping[str, Path]
) -> Iterator[tuple[Control, str]]:
    """Yields controls and the SHA-256 of the weights that the bundle has for each; its own again at the end.

    Args:
        bundle: whose network gets the weights.
        controls: in order.
        unseen: by patient, weights of a model that was not trained on him.
    """
    own = {name: value.clone() for name, value in bundle.network.state_dict().items()}
    for control in controls:
        bundle.network.load_state_dict(own)
        sha256 = bundle.weights_sha256
        if control.patient in unseen:
            load_weights(bundle.network, unseen[control.patient]).eval()
            sha256 = file_sha256(unseen[control.patient])
        yield control, sha256
    bundle.network.load_state_dict(own)


@contextmanager
def costing_itself(what: str, leave_out: LeaveOut) -> Iterator[None]:
    """Lets an input that cannot be used cost itself alone."""
    try:
        yield
    except InputError as error:
        leave_out(what, error)


def controls_of(
    manifest: Path, split: str = "train", data_root: Path | None = None, modality: str = ""
) -> list[Control]:
    """Returns the scans of a manifest's split: `image`, and `target` or `abnormal` where what is not healthy is masked.

    `abnormal` holds all that is not healthy, and perhaps more: enough to leave it out, no truth to be measured against.
    Of scans with a class, those that are not normal are no controls. Scans are of `modality`, see `find_cases`.

    Raises:
        ManifestError: the manifest is not valid.
        NoInputError: a file that it names is not one volume.
    """
    root = find_data_root(manifest, data_root)
    return [
        Control(
            item["patient"],
            one_case(root, item["image"], modality),
            next((one_truth(root, item[role]) for role in ("target", "abnormal") if role in item), None),
        )
        for item in datalist_from_manifest(manifest, split, data_root)
        if "image" in item and item.get("class", NORMAL) == NORMAL
    ]


def _span(values: Sequence[float]) -> tuple[float, float]:
    return round(min(values), 4), round(max(values), 4)


def healthy_regions(bundle: OpenBundle, control: Control, image: MetaTensor) -> tuple[list[float], bool]:
    """Returns the scores of a scan's regions without what lies in or near its lesions, and whether it was a whole head.

    Raises:
        MedgenError: the scan cannot be used, is not what the bundle takes, or the bundle does not score.
    """
    foreign = FOREIGN & set(bundle.input_check(image).flags if bundle.input_check else ())
    if foreign:
        raise IntensityError(
            f"{control.scan.name}: expected a scan such as {bundle.name} takes, got one flagged "
            f"{', '.join(sorted(foreign))}; leave it out, or declare its contrast (--set contrast=...)"
        )
    item = scored(bundle, control.scan, image)
    heat, inside, evidence = item["pred"], np.asarray(item["brain"][0]) > 0, item[EVIDENCE_KEY]
    affine = np.asarray(heat.affine)
    seen = inside
    if control.lesions is not None:
        lesion = on_grid_of(heat, read_image(control.lesions)) > 0.5
        if lesion.any():
            seen = inside & (distance_transform_edt(~lesion, spacing_mm(affine)) > LESION_MARGIN_MM)
    scores = _known(score_regions(evidence, inside, affine, seen=seen))
    if not scores:
        raise IntensityError(f"{control.scan.name}: expected regions of which half is healthy, got none or too few")
    return scores, FOUND_FLAG in flags_of(item["brain"])


def _known(regions: Sequence[RegionScore]) -> list[float]:
    return [region.evidence for region in regions if not math.isnan(region.evidence)]


def scored(bundle: OpenBundle, case: Case, image: MetaTensor) -> dict[Any, Any]:
    """Returns a case as the bundle's postprocessing leaves it once it is scored, on the network's grid.

    Raises:
        BundleError: the bundle does not score.
    """
    steps = list(bundle.postprocessing.transforms)
    last = next((n for n, step in enumerate(steps) if isinstance(step, ScoreRegionsd | ScoreBScansd)), None)
    if last is None:
        raise BundleError(f"expected a bundle that scores (ScoreRegionsd or ScoreBScansd), got {bundle.name}")
    predicted = predict.compute(bundle, predict.prepare(bundle, case, image))
    item: dict[Any, Any] = Compose(steps[: last + 1])(predicted.item)
    return item


def on_grid_of(image: MetaTensor, other: MetaTensor) -> npt.NDArray[np.float32]:
    """Returns a mask `(X, Y, Z)` on the grid of an image, by the nearest voxel."""
    resample = SpatialResample(mode="nearest", padding_mode="zeros", dtype=torch.float64)
    moved = resample(other, dst_affine=image.affine, spatial_size=tuple(image.shape[1:]))
    return np.asarray(moved[0].numpy(), dtype=np.float32)


class SimulatedScans(Sequence[MetaTensor]):
    """Scans `(1, X, Y, Z)` of simulated healthy people, 1 mm, from the tissue maps of `eve-template.json`.

    Each is made when it is asked for: many of them do not fit into memory.

    Args:
        count: how many.
        contrast: `"FLAIR"` or `"T2w"`.
        data_root: what that manifest's paths are relative to.
        first: number of the first: the same numbers are the same people.

    Raises:
        ManifestError: the tissue maps are not there.
    """

    def __init__(self, count: int, contrast: str, data_root: Path | None = None, first: int = 0) -> None:
        self._length, self._first = count, first
        if count == 0:
            return
        cases = datalist_from_manifest(find_manifest(Path("eve-template")), "train", data_root)
        items = [{**{name: case[name] for name in _TISSUES}, "contrast": contrast} for case in cases]
        keys = list(_TISSUES)
        load = Compose(
            [
                LoadImaged(keys, reader=VolumeReader, ensure_channel_first=True),
                Orientationd(keys, axcodes="RAS", labels=_AXES),
                ConcatItemsd(keys, "tissues"),
                RandWindowd(["tissues"], None, **_SHAPE),
                RandBrainMrd("tissues"),
            ]
        )
        self._draws = FixedDraws(items, load, first + count, seed=_FIRST_SEED)

    def __len__(self) -> int:
        """How many."""
        return self._length

    def __getitem__(self, number: int) -> MetaTensor:  # type: ignore[override]  # no slices
        """Returns one scan."""
        if not 0 <= number < self._length:
            raise IndexError(number)
        image = self._draws[self._first + number]["image"]
        affine = np.eye(4)
        affine[:3, 3] = [-(side - 1) / 2 for side in image.shape[1:]]
        return MetaTensor(image, affine=torch.from_numpy(affine))


def score_simulated(bundle: OpenBundle, image: MetaTensor, number: int) -> Healthy:
    """Returns the scores of a simulated scan, all of which is healthy.

    Raises:
        MedgenError: the scan cannot be used, or the bundle does not score.
    """
    name = f"simulated-{number}"
    case = Case(name, "nifti", (Path(name),), PurePosixPath(name), PurePosixPath(name), ".nii.gz")
    item = scored(bundle, case, image)
    return Healthy(name, tuple(_known(item[REGIONS_KEY])), float(item[SCAN_KEY]), bundle.weights_sha256)


def uniformities(reference: HealthyReference) -> list[Uniformity]:
    """Returns how uniform p-values are: of each patient's healthy regions against all others', and of all together."""
    found = []
    for group in ("patients", "simulated"):
        by_person = reference.held_out(group)
        if not by_person:
            continue
        if group == "patients":
            found += [uniformity(person, values) for person, values in by_person.items()]
        found.append(uniformity(f"all {group}", np.concatenate(list(by_person.values()))))
    if len(scans := reference.held_out_scans()) > 1:
        found.append(uniformity("scans, simulated" if reference.simulated else "scans", scans))
    return found


def table(found: Sequence[Uniformity]) -> str:
    """Returns the tests as lines of text."""
    lines = [f"{'held out':24} {'n':>5}  {'KS':>5}  {'p of KS':>7}  {'alarms at 5 %':>13}  95 % interval"]
    lines += [
        f"{one.who:24} {one.regions:5}  {one.ks:5.3f}  {one.ks_p:7.3f}  {one.alarms:13.3f}  "
        f"{one.interval[0]:.3f} to {one.interval[1]:.3f}"
        for one in found
    ]
    return "\n".join(lines)


def save(reference: HealthyReference, path: Path) -> None:
    """Writes a reference, a person a line.

    Raises:
        OutputError: the file cannot be written.
    """
    content = reference.to_json()
    groups = {name: content.pop(name) for name in ("patients", "simulated")}
    parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    for name, people in groups.items():
        lines = ",\n".join(f"  {json.dumps(person)}" for person in people)
        parts.append(f' "{name}": [\n{lines}\n ]' if people else f' "{name}": []')
    atomic_text(path, "{\n" + ",\n".join(parts) + "\n}\n")
