"""A bundle that screens, on a whole cohort: every scan has its row, a broken one counts as wrong, features a map."""

import csv
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from anogan_like import Scan, write_anogan_bundle, write_cohort
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner, Result
from zoo_like import write_bundle

from medgen.cli import app
from medgen.errors import ManifestError, NoInputError
from medgen.metrics import screening
from medgen.metrics.screening import screen
from medgen.metrics.simple_oct import BASELINES
from medgen.run import judge as judging
from medgen.run import screen as screens
from medgen.run.bundle import OpenBundle, open_bundle
from medgen.run.judge import judge
from medgen.run.screen import Screened, Seen, screen_cohort, write_features
from medgen.run.steps import Event

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla:UserWarning"),
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]

SIMPLE = ["thickness", "mean B-scan"]
SCANS = [
    Scan("t0.png", "a", split="train"),
    Scan("t1.png", "b", split="train"),
    Scan("t2.png", "c", split="train", broken=True),
    Scan("n0.png", "d"),
    Scan("n1.png", "e"),
    Scan("n2.png", "f", broken=True),
    Scan("v0.png", "g", "neovascular"),
    Scan("v1.png", "g", "neovascular"),
    Scan("f0.png", "h", "fluid"),
    Scan("f1.png", "i", "fluid", broken=True),
    Scan("l0.png", "j", "fluid", "validation"),
]
TESTED = [scan for scan in SCANS if scan.split == "test"]


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    """Few draws, and of the simple answers those that are fitted at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "_DRAWS", 3)
        patch.setattr(screens, "BASELINES", {name: BASELINES[name] for name in SIMPLE})
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_anogan_bundle(tmp_path_factory.mktemp("bundles") / "eyes")


@pytest.fixture(scope="module")
def opened(bundle: Path) -> OpenBundle:
    return open_bundle(bundle, trust=True, device="cpu", reference=False)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"), SCANS)


@pytest.fixture(scope="module")
def evaluated(bundle: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """What `medgen evaluate` says, and where it wrote to."""
    output = tmp_path_factory.mktemp("out")
    return medgen("evaluate", bundle, "--data", manifest, "-o", output, "--trust", "--device", "cpu"), output


def medgen(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def alter(manifest: Path, to: Path, **fields: object) -> Path:
    """Returns a copy with these fields in every case, without those that are None."""
    content = json.loads(manifest.read_text())
    content["cases"] = [
        {key: value for key, value in (case | fields).items() if value is not None} for case in content["cases"]
    ]
    to.write_text(json.dumps(content))
    return to


def test_every_scan_has_its_row_and_what_is_broken_costs_itself(evaluated: tuple[Result, Path]) -> None:
    ended, output = evaluated
    assert ended.exit_code == 1, ended.output
    found = rows(output / "metrics.csv")
    assert list(found[0]) == ["case", "patient", "class", "score", "reason", *SIMPLE]
    assert [(row["case"], row["patient"], row["class"]) for row in found] == [
        (s.name, s.patient, s.kind) for s in TESTED
    ]
    for row, scan in zip(found, TESTED, strict=True):
        numbers = [row[name] for name in ("score", *SIMPLE)]
        if scan.broken:
            assert numbers == ["", "", ""]
            assert "expected a JPEG, PNG or TIFF picture" in row["reason"]
        else:
            assert row["reason"] == ""
            assert all(math.isfinite(float(number)) for number in numbers)
            assert float(row["score"]) > 0


def test_the_summary_is_of_the_rows_and_broken_scans_count_as_wrong(evaluated: tuple[Result, Path]) -> None:
    ended, output = evaluated
    found = rows(output / "metrics.csv")
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["scans"], summary["failed"]) == (7, 2)
    assert list(summary["found"]) == ["score", *SIMPLE]
    abnormal = np.array([row["class"] != "normal" for row in found])
    for name, row in summary["found"].items():
        assert [(one["kind"], one["scans"], one["normal"]) for one in row] == [
            ("fluid", 2, 3),
            ("neovascular", 2, 3),
            ("all", 4, 3),
        ]
        assert [one["patients"] for one in row] == [2, 1, 3]
        wrong = [1e6 if row["class"] == "normal" else -1e6 for row in found]
        values = [float(row[name]) if row[name] else worst for row, worst in zip(found, wrong, strict=True)]
        assert row[-1]["auroc"] == pytest.approx(roc_auc_score(abnormal, values))
        # One of 3 normal scans is above all, one of 4 others below all.
        assert row[-1]["auroc"] <= 2 / 3 * 3 / 4
    text = (output / "summary.txt").read_text()
    assert text.strip() in ended.output
    assert "7 scans, 2 without a score, which count as wrong" in text
    assert "Not for diagnosis" in text


def test_features_of_every_scan_that_was_read_are_a_map(evaluated: tuple[Result, Path]) -> None:
    _, output = evaluated
    found = rows(output / "features.csv")
    assert [(row["case"], row["class"]) for row in found] == [(s.name, s.kind) for s in TESTED if not s.broken]
    places = np.array([[float(row["x"]), float(row["y"])] for row in found])
    assert np.isfinite(places).all()
    assert len(np.unique(places, axis=0)) == len(found)
    with Image.open(output / "features.png") as picture:
        page = np.asarray(picture)
    colours = [(30, 90, 170), (200, 60, 40), (40, 150, 70)]  # fluid, neovascular, normal
    assert all((page == colour).all(axis=-1).any() for colour in colours)


def test_all_takes_the_scans_of_every_split(bundle: Path, manifest: Path, tmp_path: Path) -> None:
    words = ("evaluate", bundle, "--data", manifest, "-o", tmp_path, "--trust", "--split", "all", "--json")
    ended = medgen(*words, "--device", "cpu")
    assert ended.exit_code == 1
    found = rows(tmp_path / "metrics.csv")
    assert sorted(row["case"] for row in found) == sorted(scan.name for scan in SCANS)
    summary = json.loads(ended.stdout)
    assert (summary["scans"], summary["failed"]) == (11, 3)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_of_normal_scans_alone_or_without_any_is_refused(
    split: str, opened: OpenBundle, manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(NoInputError, match=f"normal scans and others in the split '{split}'.*--split all"):
        screen_cohort(opened, manifest, tmp_path / "out", split)
    assert not (tmp_path / "out").exists()


def test_a_manifest_without_classes_is_refused(bundle: Path, manifest: Path, tmp_path: Path) -> None:
    plain = alter(manifest, tmp_path / "plain.json", **{"class": None})
    words = ("evaluate", bundle, "--data", plain, "--data-root", manifest.parent, "-o", tmp_path / "out", "--trust")
    ended = medgen(*words)
    assert ended.exit_code == 2
    assert "an image and a class of every case" in " ".join(ended.output.split())
    assert not (tmp_path / "out").exists()


def test_a_class_is_asked_of_the_scans_to_train_on_too(opened: OpenBundle, tmp_path: Path) -> None:
    scans = [Scan("t.png", "a", "", "train", broken=True), Scan("n.png", "b", broken=True)]
    manifest = write_cohort(tmp_path, [*scans, Scan("f.png", "c", "fluid", broken=True)])
    with pytest.raises(ManifestError, match="a class of every case"):
        screen_cohort(opened, manifest, tmp_path / "out")


def test_without_normal_scans_to_learn_from_there_are_no_simple_answers(opened: OpenBundle, tmp_path: Path) -> None:
    scans = [Scan("t.png", "a", split="train", broken=True), Scan("n.png", "b"), Scan("f.png", "c", "fluid")]
    found = screen_cohort(opened, write_cohort(tmp_path, scans), tmp_path / "out")
    assert list(found.found()) == ["score"]
    assert found.failed == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"metrics.csv", "summary.json", "summary.txt"}


def test_simple_answers_are_learnt_from_normal_scans_to_train_on_alone(
    opened: OpenBundle, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def fit(normal: list[object]) -> object:
        seen.append(len(normal))
        return BASELINES["thickness"](normal)  # type: ignore[arg-type]

    monkeypatch.setattr(screens, "BASELINES", {"thickness": fit})
    heard: list[tuple[str, int, int]] = []
    screen_cohort(opened, manifest, tmp_path / "a", listen=lambda *what: heard.append(what))
    assert seen == [2]  # of 3, one of which is broken
    assert [number for _, number, _ in heard] == list(range(10))
    assert {total for _, _, total in heard} == {10}
    assert [what for what, _, _ in heard[3:]] == [scan.name for scan in TESTED]
    sick = [Scan("t.png", "a", split="train"), Scan("s.png", "b", "fluid", "train"), Scan("n.png", "c", broken=True)]
    screen_cohort(opened, write_cohort(tmp_path, sick), tmp_path / "b", "all")
    assert seen == [2, 1]


def test_a_screening_of_rows_is_that_of_their_scores() -> None:
    kinds = ["normal"] * 4 + ["fluid"] * 3
    scores = [0.1, 0.5, 0.2, math.nan, 0.4, 0.9, math.nan]
    seen = [Seen(f"{n}.png", f"p{n}", kinds[n], scores[n], "", {"simple": n}) for n in (0, 1, 2, 4, 5)]
    for n in (3, 6):
        seen.insert(n, Seen(f"{n}.png", f"p{n}", kinds[n], reason="a, b"))
    found = Screened(tuple(seen))
    people = [row.patient for row in seen]
    simple = [math.nan if math.isnan(score) else n for n, score in enumerate(scores)]
    assert found.failed == 2
    assert found.found() == {"score": screen(scores, kinds, people), "simple": screen(simple, kinds, people)}
    assert list(csv.reader(found.csv().splitlines()))[4] == ["3.png", "p3", "normal", "", "a, b", ""]


def test_above_a_threshold_a_missing_score_is_wrong_whatever_the_scan_shows() -> None:
    scores = {"normal": [0.1, 0.5, 0.9, math.nan], "fluid": [0.5, 0.6, math.nan]}
    seen = tuple(Seen("a.png", "p", kind, score) for kind, found in scores.items() for score in found)
    assert Screened(seen, 0.5).above() == {"normal": (2, 4), "fluid": (1, 3)}
    assert "above the threshold 0.5: fluid 1 of 3, normal 2 of 4" in Screened(seen, 0.5).table()
    assert Screened(seen).above() == {}
    assert "threshold" not in Screened(seen).table()


def test_the_bundles_threshold_is_of_its_own_settings_alone(
    bundle: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    monkeypatch.setattr(judging, "screen_cohort", lambda *words: given.append(words[-1]) or Screened(()))
    calibrated = tmp_path / "calibrated"
    shutil.copytree(bundle, calibrated)
    path = calibrated / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"operating_threshold": 0.25}))
    for folder, changes in ((bundle, []), (calibrated, []), (calibrated, ["stride=32"])):
        judge(str(folder), manifest, tmp_path / "out", trust=True, device="cpu", changes=changes)
    assert given == [None, 0.25, None]


def test_too_few_scans_make_no_map(tmp_path: Path) -> None:
    seen = [Seen(f"{n}.png", "p", "normal", 0.0, "", {}, (float(n), 1.0)) for n in range(3)]
    write_features(seen, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_judge_screens_with_bundles_that_screen_and_compares_with_others(
    bundle: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[object, ...]] = []

    def evaluate_job(*words: object, **options: object) -> str:
        called.append(words)
        assert (options["split"], options["trust"], options["changes"]) == ("train", True, ["stride=64"])
        return "compared"

    monkeypatch.setattr(judging, "evaluate_job", evaluate_job)
    other = write_bundle(tmp_path / "double")
    found = judge(str(other), manifest, tmp_path / "a", split="train", trust=True, changes=["stride=64"])
    assert found == "compared"
    assert called == [(str(other), manifest, tmp_path / "a")]
    events: list[Event] = []
    screened = judge(
        str(bundle), manifest, tmp_path / "b", trust=True, device="cpu", changes=["stride=64"], listen=events.append
    )
    assert isinstance(screened, Screened)
    assert len(called) == 1
    assert [event.kind for event in events] == ["begin", *["stage"] * 10, "end"]
    assert [event.case for event in events[4:-1]] == [scan.name for scan in TESTED]


def test_a_change_of_the_config_changes_the_scores(bundle: Path, tmp_path: Path) -> None:
    scans = [Scan("t0.png", "a"), Scan("t1.png", "b", "fluid")]
    manifest = write_cohort(tmp_path, scans)
    scores = []
    for change in ("feature_weight=0.1", "feature_weight=0.1", "feature_weight=0.9"):
        found = judge(str(bundle), manifest, tmp_path / "out", trust=True, device="cpu", changes=[change])
        scores.append([row.score for row in found.rows])  # type: ignore[union-attr]
    assert scores[0] == scores[1]
    assert all(old != new for old, new in zip(scores[0], scores[2], strict=True))
