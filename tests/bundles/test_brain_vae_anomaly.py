"""What the shipped weights and references promise: lesions stand out, p-values keep their word, strangers have none."""

from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import distance_transform_edt

from medgen.case import Result
from medgen.geometry import Grid
from medgen.infer.reference import OUTSIDE_FLAG, HealthyReference, p_value
from medgen.metrics.detection import bare_brain, best_brightness, score_detection
from medgen.read.discover import find_cases
from medgen.read.manifest import find_manifest
from medgen.read.reader import read_image
from medgen.run.bundle import OpenBundle, open_bundle
from medgen.run.calibrate import SimulatedScans, on_grid_of, score_simulated, uniformities, uniformity
from medgen.run.catalog import find_bundle
from medgen.run.job import manifest_pairs, predict_case
from medgen.simulate.brain import simulate_brain
from medgen.simulate.lesion import add_lesions
from medgen.simulate.sample import head_grid
from medgen.simulate.signal import inversion_recovery, mr_image

BUNDLE = "brain_vae_anomaly"
CONTRASTS = ("FLAIR", "T2w")
GRID = head_grid((150, 180, 150), (1.0, 1.0, 1.0))

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")


@cache
def opened(contrast: str = "FLAIR") -> OpenBundle:
    return open_bundle(BUNDLE, device="cpu", changes=[f"contrast={contrast}"])


def shipped(contrast: str) -> HealthyReference:
    return HealthyReference.load(str(find_bundle(BUNDLE).folder / "models" / f"healthy_reference_{contrast}.json"))


def run(volume: npt.NDArray[np.float32], grid: Grid, folder: Path, name: str = "FLAIR") -> Result:
    nib.save(nib.Nifti1Image(volume.astype(np.float32), grid.affine), folder / f"sub-1_{name}.nii.gz")
    (case,) = find_cases(folder / f"sub-1_{name}.nii.gz", salt=b"test")
    return predict_case(opened(), case)


@cache
def flair(lesion: bool) -> npt.NDArray[np.float32]:
    """A brain by formula, of an anatomy that no training saw; with a lesion of 12 mm, brighter by a third."""
    parts = simulate_brain(GRID, seed=4, head=False)
    image = 500 * mr_image(parts, lambda tissue: inversion_recovery(tissue, tr_ms=9000, ti_ms=2400, te_ms=120))
    image = np.abs(image + np.random.default_rng(0).normal(0, 6, image.shape) * (image > 0)).astype(np.float32)
    if lesion:
        x, y, z = np.indices(image.shape) - np.array(lesion_place()).reshape(3, 1, 1, 1)
        usual = float(np.median(image[image > 0]))
        cover = (np.sqrt(x**2 + y**2 + z**2) < 6).astype(np.float32)
        image = add_lesions(image / usual, cover, 1.4 * cover, 1.0) * usual
    return image.astype(np.float32)


def lesion_place() -> tuple[int, int, int]:
    """In white matter, right, upper front."""
    parts = simulate_brain(GRID, seed=4, head=False)
    deep = distance_transform_edt(np.asarray(parts["white"]) > 0.9)
    deep[: GRID.shape[0] // 2] = 0
    x, y, z = np.unravel_index(int(deep.argmax()), deep.shape)
    return int(x), int(y), int(z)


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_the_shipped_reference_is_uniform_on_health_that_it_has_not_seen(contrast: str) -> None:
    reference = shipped(contrast)
    assert reference.weights_sha256 == opened().weights_sha256
    tests = {one.who: one for one in uniformities(reference)}
    for who in ("all patients", "all simulated", "scans, simulated"):
        assert tests[who].ks_p > 0.05, who
        low, high = tests[who].interval
        assert low <= tests[who].alarms <= high, who
    assert len(reference.patients) == 3
    assert tests["all patients"].regions >= 60


@pytest.mark.slow
def test_a_lesion_is_where_the_map_is_highest(tmp_path: Path) -> None:
    result = run(flair(lesion=True), GRID, tmp_path)
    assert result.findings is not None
    top = result.findings.regions[0]
    place = GRID.affine @ [*lesion_place(), 1.0]
    assert np.linalg.norm(np.subtract(top.peak_mm, place[:3])) < 10
    clean = run(flair(lesion=False), GRID, tmp_path)
    assert clean.findings is not None
    (same,) = (region for region in clean.findings.regions if region.name == top.name)
    assert top.score > same.score + 0.2
    assert top.evidence > same.evidence


def test_a_coarse_scan_has_a_map_but_no_p_value(tmp_path: Path) -> None:
    thick = flair(lesion=True)[:, :, ::5]
    grid = Grid((150, 180, 30), GRID.affine @ np.diag([1.0, 1.0, 5.0, 1.0]))
    result = run(thick, grid, tmp_path)
    assert OUTSIDE_FLAG in result.flags
    assert result.findings is not None
    assert result.findings.score is None
    assert all(region.p is None for region in result.findings.regions)
    assert result.image.max() > 1


@pytest.mark.real_data
def test_another_contrast_is_not_scored_as_sick(real_data: Path) -> None:
    (case,) = find_cases(real_data / "t1_t2" / "ms-mni07" / "t1.nii.gz", salt=b"test")
    result = predict_case(opened(), case)
    assert {"input-contrast", OUTSIDE_FLAG} <= set(result.flags)
    assert result.findings is not None
    assert result.findings.score is None


@pytest.mark.slow
@pytest.mark.real_data
def test_lesions_of_patients_are_found_better_than_by_brightness(real_data: Path) -> None:
    """Of patients whose normal tissue was trained on, but not their lesions; the card has those left out."""
    for pair in manifest_pairs(find_manifest(Path("brain-lesions-flair")), "train", real_data):
        result = predict_case(opened(), pair.case)
        image = read_image(pair.case)
        lesion, brain = on_grid_of(image, read_image(pair.truth)) > 0.5, bare_brain(result.source)
        found = score_detection(result.image, lesion, brain)
        simple = score_detection(best_brightness(result.source, lesion, brain), lesion, brain)
        assert found.auprc > simple.auprc + 0.05, pair.patient
        assert found.auroc > simple.auroc, pair.patient
        assert result.findings is not None
        peak = np.linalg.inv(result.grid.affine) @ [*result.findings.regions[0].peak_mm, 1.0]
        x, y, z = np.rint(peak[:3]).astype(int)
        assert lesion[x - 2 : x + 3, y - 2 : y + 3, z - 2 : z + 3].any(), pair.patient


@pytest.mark.slow
@pytest.mark.real_data
def test_simulated_people_that_the_reference_has_not_seen_raise_as_many_alarms_as_promised(real_data: Path) -> None:
    reference = shipped("FLAIR")
    known = np.concatenate([one.regions for one in reference.simulated])
    images = SimulatedScans(8, "FLAIR", real_data, first=len(reference.simulated))
    people = [score_simulated(opened(), image, number) for number, image in enumerate(images)]
    test = uniformity("new", [p_value(score, known) for person in people for score in person.regions])
    assert test.regions > 200
    assert test.ks_p > 0.01
    assert test.interval[0] <= test.alarms <= test.interval[1]
