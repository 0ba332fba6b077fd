"""A bundle that scores whole scans against their classes: a row a scan, how well each class is told, a map of features.

The score of a scan that could not be scored counts as wrong. Simple answers are scored beside the bundle's, fitted on
the normal scans of the manifest's split to train on: what a bundle has earned is the distance from them.
"""

import csv
import io
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from sklearn.manifold import TSNE

from medgen.errors import ManifestError, MedgenError, NoInputError
from medgen.infer.anogan import patch_starts
from medgen.infer.regions import SCAN_KEY
from medgen.metrics.screening import NORMAL, Screening, screen, table
from medgen.metrics.simple_oct import BASELINES, Fitted, Flat
from medgen.prepare.flatten import RETINA_KEY
from medgen.read.manifest import SPLITS, Listed, datalist_from_manifest, find_data_root
from medgen.read.reader import read_image
from medgen.run import predict
from medgen.run.bundle import OpenBundle
from medgen.run.calibrate import scored
from medgen.run.job import one_case
from medgen.write.atomic import atomic_text
from medgen.write.scatter import write_scatter

logger = logging.getLogger(__name__)

ALL_SPLITS = "all"
_LEAST_POINTS = 4
_NOT_FOR = "For research. Not for diagnosis, not a medical device."
Listen = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Seen:
    """One scan of a screening.

    Attributes:
        case: its name.
        patient: whose it is.
        kind: its class.
        score: NaN where it could not be scored.
        reason: why it could not, else "".
        simple: scores of the simple answers, by name.
        features: what the judge knows it by, averaged over its patches; empty where it could not be scored.
    """

    case: str
    patient: str
    kind: str
    score: float = math.nan
    reason: str = ""
    simple: Mapping[str, float] = field(default_factory=dict)
    features: tuple[float, ...] = ()


@dataclass(frozen=True)
class Screened:
    """All scans of a screening; `table` is what people read, `summary` what programs read.

    Attributes:
        rows: of the scans.
        threshold: the bundle's operating threshold, chosen on normal scans that its weights had not seen; None where
            none is known for these settings.
    """

    rows: tuple[Seen, ...]
    threshold: float | None = None

    @property
    def failed(self) -> int:
        """How many scans have no score."""
        return sum(math.isnan(row.score) for row in self.rows)

    def found(self) -> dict[str, list[Screening]]:
        """Returns how well each class is told, by the bundle's `score` and by the simple answers."""
        kinds, patients = [row.kind for row in self.rows], [row.patient for row in self.rows]
        names = next((list(row.simple) for row in self.rows if row.simple), [])
        columns = {"score": [row.score for row in self.rows]}
        columns |= {name: [row.simple.get(name, math.nan) for row in self.rows] for name in names}
        return {name: screen(values, kinds, patients) for name, values in columns.items()}

    def above(self) -> dict[str, tuple[int, int]]:
        """Returns, by class, how many scans of how many score above the threshold; one without a score is wrong."""
        if self.threshold is None:
            return {}
        counts = {}
        for kind in sorted({row.kind for row in self.rows}):
            scores = [row.score for row in self.rows if row.kind == kind]
            missing = sum(map(math.isnan, scores)) if kind == NORMAL else 0
            counts[kind] = (missing + sum(score > self.threshold for score in scores), len(scores))
        return counts

    def table(self) -> str:
        """Returns the summary as lines of text."""
        told = ", ".join(f"{kind} {count} of {total}" for kind, (count, total) in self.above().items())
        alarms = f"above the threshold {self.threshold:.4g}: {told}\n" if told else ""
        scans = f"{len(self.rows)} scans, {self.failed} without a score, which count as wrong. {_NOT_FOR}"
        return f"{table(self.found())}\n{alarms}{scans}\n"

    def summary(self) -> dict[str, object]:
        """Returns the summary as plain JSON types."""
        found = {name: [asdict(one) for one in row] for name, row in self.found().items()}
        return {"scans": len(self.rows), "failed": self.failed, "found": found, "above": self.above(), "note": _NOT_FOR}

    def csv(self) -> str:
        """Returns a row a scan."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        names = next((list(row.simple) for row in self.rows if row.simple), [])
        writer.writerow(["case", "patient", "class", "score", "reason", *names])
        for row in self.rows:
            numbers = [row.score, *(row.simple.get(name, math.nan) for name in names)]
            cells = ["" if math.isnan(number) else f"{number:.5g}" for number in numbers]
            writer.writerow([row.case, row.patient, row.kind, cells[0], row.reason, *cells[1:]])
        return stream.getvalue()


def screen_cohort(
    bundle: OpenBundle,
    manifest: Path,
    output: Path,
    split: str = "test",
    data_root: Path | None = None,
    listen: Listen = lambda what, number, total: None,
    threshold: float | None = None,
) -> Screened:
    """Scores the scans of a manifest's split, and says how well each class is told from normal.

    Writes `metrics.csv`, `summary.json`, `summary.txt`, and the judge's features of all scans as a map (t-SNE):
    `features.csv`, `features.png`.

    Args:
        bundle: one that scores B-scans.
        manifest: whose cases say their `class`.
        output: folder to write to.
        split: of the manifest, or `"all"`.
        data_root: what the manifest's paths are relative to.
        listen: told of progress.
        threshold: see `Screened`.

    Raises:
        NoInputError: there are no normal scans in the split, or no others.
        ManifestError: the manifest is not valid, or a case has no class.
    """
    items = _items(manifest, split, data_root)
    kinds = {item["class"] for item in items}
    if NORMAL not in kinds or len(kinds) == 1:
        raise NoInputError(
            f"expected normal scans and others in the split {split!r} of {manifest.name}, got "
            f"{', '.join(sorted(kinds)) or 'none'}; --split all takes every scan, also those trained on"
        )
    root = find_data_root(manifest, data_root)
    if not any(path.exists() for item in items for path in Listed.parse(item["image"]).paths):
        raise NoInputError(f"expected the files of {manifest.name} below {root.name}, got none; see --data-root")
    learnt = [item for item in _items(manifest, "train", data_root) if item["class"] == NORMAL]
    total = len(learnt) + len(items)
    normal = []
    for number, item in enumerate(learnt):
        listen(f"normal {number + 1}", number, total)
        try:
            normal.append(flat_of(_prepared(bundle, root, item)[1]))
        except MedgenError as error:
            logger.warning("left out of the simple answers: %s", error)
    simple = {name: fit(normal) for name, fit in BASELINES.items()} if normal else {}
    rows = []
    for number, item in enumerate(items):
        listen(_name(root, item), len(learnt) + number, total)
        rows.append(_seen(bundle, root, item, simple))
    found = Screened(tuple(rows), threshold)
    atomic_text(output / "metrics.csv", found.csv())
    atomic_text(output / "summary.json", json.dumps(found.summary(), indent=2) + "\n")
    atomic_text(output / "summary.txt", found.table())
    write_features(found.rows, output)
    return found


def flat_of(prepared: predict.Prepared) -> Flat:
    """Returns the first flattened B-scan `(X, rows)` of a case, and where its retina is."""
    band = np.asarray(prepared.item["image"][0, ..., 0].cpu().numpy(), dtype=np.float32)
    return band, np.asarray(prepared.item[RETINA_KEY][0, ..., 0].cpu().numpy()) > 0


def features_of(bundle: OpenBundle, prepared: predict.Prepared) -> tuple[float, ...]:
    """Returns the mean of the judge's last features over the patches of a case."""
    planes = prepared.item["image"].as_tensor().float().movedim(-1, 0)
    width = bundle.inferer.size[0]  # type: ignore[attr-defined]
    starts = patch_starts(planes.shape[2], width, bundle.inferer.stride)  # type: ignore[attr-defined]
    patches = torch.cat([planes[:, :, start : start + width] for start in starts]).to(bundle.device)
    with torch.no_grad():
        features = bundle.network.features(patches)  # type: ignore[operator]
    return tuple(float(value) for value in features.float().mean(dim=(0, 2, 3)).cpu())


def write_features(rows: Sequence[Seen], output: Path) -> None:
    """Writes the scans' features as points in the plane, near ones near each other, in the colour of their class.

    Raises:
        OutputError: the folder cannot be written.
    """
    known = [row for row in rows if row.features]
    if len(known) < _LEAST_POINTS:
        return
    vectors = np.array([row.features for row in known], dtype=np.float64)
    near = min(10.0, (len(known) - 1) / 3)
    places = TSNE(n_components=2, perplexity=near, random_state=0, init="pca").fit_transform(vectors)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["case", "class", "x", "y"])
    writer.writerows([r.case, r.kind, f"{x:.5g}", f"{y:.5g}"] for r, (x, y) in zip(known, places, strict=True))
    atomic_text(output / "features.csv", stream.getvalue())
    axes = (f"t-SNE of the judge's features, perplexity {near:.1f}", "")
    kinds = [row.kind for row in known]
    write_scatter(np.asarray(places, dtype=np.float64), [""] * len(known), axes, output / "features.png", kinds)


def _items(manifest: Path, split: str, data_root: Path | None) -> list[dict[str, Any]]:
    items = [
        item
        for name in (SPLITS if split == ALL_SPLITS else (split,))
        for item in datalist_from_manifest(manifest, name, data_root)
    ]
    if any("class" not in item or "image" not in item for item in items):
        raise ManifestError(f"{manifest.name}: expected an image and a class of every case, one lacks them")
    return items


def _name(root: Path, item: Mapping[str, Any]) -> str:
    return Listed.parse(item["image"]).paths[0].relative_to(root).as_posix()


def _prepared(bundle: OpenBundle, root: Path, item: Mapping[str, Any]) -> tuple[MetaTensor, predict.Prepared]:
    case = one_case(root, item["image"], bundle.metadata.modality_in)
    if case.refused:
        raise NoInputError(case.refused)
    image = read_image(case)
    return image, predict.prepare(bundle, case, image)


def _seen(bundle: OpenBundle, root: Path, item: Mapping[str, Any], simple: Mapping[str, Fitted]) -> Seen:
    name = _name(root, item)
    try:
        image, prepared = _prepared(bundle, root, item)
        flat, features = flat_of(prepared), features_of(bundle, prepared)
        score = float(scored(bundle, prepared.case, image)[SCAN_KEY])
    except MedgenError as error:
        return Seen(name, item["patient"], item["class"], reason=str(error))
    told = {answer: fitted(flat) for answer, fitted in simple.items()}
    return Seen(name, item["patient"], item["class"], score, "", told, features)
