"""What the shipped weights promise: lesions score above health, maps lie on them, and what is no retina is refused."""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from medgen.case import Result
from medgen.errors import IntensityError
from medgen.infer.anogan import FINDERS
from medgen.infer.normal_scans import NormalScans
from medgen.infer.reference import p_value
from medgen.metrics.screening import NORMAL, screen
from medgen.read.discover import find_cases
from medgen.read.manifest import SPLITS, datalist_from_manifest, find_manifest
from medgen.run.bundle import OpenBundle, open_bundle
from medgen.run.catalog import find_bundle
from medgen.run.job import one_case, predict_case
from medgen.simulate.oct import BScan, simulate_bscan
from medgen.simulate.retina import LESIONS

BUNDLE = "oct_anogan"
PEOPLE = range(300, 304)  # whom no training drew

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")


@cache
def opened() -> OpenBundle:
    return open_bundle(BUNDLE, device="cpu")


def run(image: npt.NDArray[np.float32], folder: Path) -> Result:
    Image.fromarray(image.T.astype(np.uint8)).save(folder / "scan.png")
    (case,) = find_cases(folder / "scan.png", salt=b"test", modality="OPT")
    return predict_case(opened(), case)


def score_of(scan: BScan, folder: Path) -> float:
    findings = run(scan.image, folder).findings
    assert findings is not None
    assert findings.score is not None
    return findings.score


def test_simulated_lesions_score_above_health(tmp_path: Path) -> None:
    scores = {kind: [score_of(simulate_bscan(seed, lesion=kind), tmp_path) for seed in PEOPLE] for kind in LESIONS}
    healthy = scores.pop("")
    for kind, found in scores.items():
        assert np.mean(np.subtract.outer(found, healthy) > 0) > 0.95, kind
        assert all(sick > well for sick, well in zip(found, healthy, strict=True)), kind  # the same people


@pytest.mark.parametrize("kind", [kind for kind in LESIONS if kind])
def test_the_map_lies_on_the_lesion(tmp_path: Path, kind: str) -> None:
    shares = []
    for seed in PEOPLE:
        scan = simulate_bscan(seed, lesion=kind)  # type: ignore[arg-type]
        heat = run(scan.image, tmp_path).image[..., 0]
        assert heat.shape == scan.image.shape
        near = gaussian_filter(scan.lesion.astype(np.float32), 3) > 0.1
        shares.append(heat[near & (heat > 0)].mean() / heat[~near & (heat > 0)].mean())
    assert np.median(shares) > 1.5


def test_light_and_mirror_change_little(tmp_path: Path) -> None:
    scan = simulate_bscan(301, lesion="drusen", wedges=False)
    usual = score_of(scan, tmp_path)
    for image in (scan.image[::-1], 0.6 * scan.image):
        findings = run(image, tmp_path).findings
        assert findings is not None
        assert findings.score == pytest.approx(usual, rel=0.1)


def test_parts_and_score_have_the_p_values_of_the_shipped_reference(tmp_path: Path) -> None:
    path = find_bundle(BUNDLE).folder / "models" / "normal_scans.json"
    reference = NormalScans.load(str(path))
    assert reference.weights_sha256 == opened().weights_sha256
    assert opened().flags == ()  # the reference is of the default settings
    findings = run(simulate_bscan(302, lesion="neovascular").image, tmp_path).findings
    assert findings is not None
    assert findings.score is not None
    assert findings.p_scan == p_value(findings.score, reference.scans)
    assert [part.p for part in findings.regions] == [
        p_value(part.score, reference.regions) for part in findings.regions
    ]
    assert len({one.patient for one in reference.patients}) == 15
    assert all(one.weights_sha256 != reference.weights_sha256 for one in reference.patients)  # they had not seen them


def test_a_search_finds_what_the_encoder_does(tmp_path: Path) -> None:
    scan = simulate_bscan(303, lesion="neovascular", shape=(140, 496))
    maps = {}
    for name in FINDERS:
        bundle = open_bundle(BUNDLE, device="cpu", changes=[f"finder={name}"], reference=False)
        if name == "search":
            bundle.inferer.finder.steps = 60  # type: ignore[attr-defined]  # for the test's time
        Image.fromarray(scan.image.T.astype(np.uint8)).save(tmp_path / "scan.png")
        (case,) = find_cases(tmp_path / "scan.png", salt=b"test", modality="OPT")
        maps[name] = predict_case(bundle, case).image
    seen = maps["encoder"] > 0
    for name in ("search", "warm-search"):
        assert np.corrcoef(maps["encoder"][seen], maps[name][seen])[0, 1] > 0.7, name


@pytest.mark.parametrize("what", ["noise", "upside down", "gradient", "inverted"])
def test_a_picture_without_a_retina_is_refused(tmp_path: Path, what: str) -> None:
    scan = simulate_bscan(304, wedges=False).image
    images = {
        "noise": np.random.default_rng(0).normal(100, 30, (512, 496)).clip(0, 255),
        "upside down": scan[:, ::-1],
        "gradient": np.tile(np.linspace(0, 255, 496), (512, 1)),
        "inverted": 255 - scan,
    }
    with pytest.raises(IntensityError, match="expected a B-scan of a retina"):
        run(np.asarray(images[what], dtype=np.float32), tmp_path)


@pytest.mark.real_data
def test_real_diseases_score_above_normal_eyes_that_the_reference_had_not_seen(real_data: Path) -> None:
    reference = NormalScans.load(str(find_bundle(BUNDLE).folder / "models" / "normal_scans.json"))
    kinds, scores, patients = [NORMAL] * len(reference.scans), list(reference.scans), []
    patients = [one.patient for one in reference.patients]
    manifest = find_manifest(Path("oct-kermany"))
    for split in SPLITS:
        for item in datalist_from_manifest(manifest, split, real_data):
            if item["class"] == NORMAL:
                continue
            findings = predict_case(opened(), one_case(real_data, item["image"], "OPT")).findings
            assert findings is not None
            assert findings.score is not None
            kinds.append(item["class"])
            scores.append(findings.score)
            patients.append(item["patient"])
    for one in screen(scores, kinds, patients):
        assert one.auroc > 0.97, one.kind
