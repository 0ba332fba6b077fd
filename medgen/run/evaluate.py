"""A bundle against the truth: one row a case, a summary over patients with intervals, and pictures.

The negative of the input is scored beside every prediction: what a bundle has earned is the distance from it.
"""

import csv
import io
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample

from medgen.case import Case, Result
from medgen.errors import MedgenError, NoInputError
from medgen.geometry import Grid
from medgen.metrics.bootstrap import Spread, spread
from medgen.metrics.synthesis import SynthesisScore, score_synthesis
from medgen.read.reader import read_image
from medgen.run.compare import write_comparison
from medgen.write.atomic import atomic_text

logger = logging.getLogger(__name__)

Volume = npt.NDArray[np.float32]
REGRIDDED_FLAG = "truth-regridded"
_METRICS = {"psnr_db": ("PSNR [dB]", 2), "ssim": ("SSIM", 3), "hf_ratio": ("sharpness ratio", 2)}
_MOST = 100.0  # identical images have an infinite PSNR, which no mean survives
_NOT_FOR = "Synthetic images for research. Not for diagnosis, not a medical device."


@dataclass(frozen=True)
class Pair:
    """A case, its truth, and whose it is.

    Attributes:
        case: to predict from.
        truth: what the prediction should have been.
        patient: cases of one patient count as one in the intervals.
        brain: a mask; voxels where it is 0 do not count.
    """

    case: Case
    truth: Case
    patient: str
    brain: Case | None = None


@dataclass(frozen=True)
class Row:
    """One case of the evaluation.

    Attributes:
        case: its name.
        patient: whose it is.
        status: `"done"` or `"failed"`.
        reason: why it failed, else "".
        score: of the prediction.
        negative: the same protocol on the negative of the input; None where its contrast earned nothing to score.
        flags: of the prediction, and `"truth-regridded"` where the truth lay on another grid.
        seconds: that the prediction took.
        picture: relative path, or "".
    """

    case: str
    patient: str
    status: str
    reason: str = ""
    score: SynthesisScore | None = None
    negative: SynthesisScore | None = None
    flags: tuple[str, ...] = ()
    seconds: float = math.nan
    picture: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All cases of an evaluation; `table` is what people read, `summary` what programs read."""

    rows: tuple[Row, ...]

    @property
    def failed(self) -> int:
        """How many cases have no score."""
        return sum(row.score is None for row in self.rows)

    def spreads(self) -> dict[str, dict[str, Spread]]:
        """Returns, by metric, the spread over patients of `prediction`, `negative` and `gain`, their difference."""
        scored = [row for row in self.rows if row.score is not None and row.negative is not None]
        if not scored:
            return {}
        patients = [row.patient for row in scored]
        found = {}
        for metric in _METRICS:
            values = np.array([[getattr(row.score, metric), getattr(row.negative, metric)] for row in scored])
            values = np.minimum(values, _MOST)
            named = {"prediction": values[:, 0], "negative": values[:, 1], "gain": values[:, 0] - values[:, 1]}
            found[metric] = {name: spread(column, patients) for name, column in named.items()}
        return found

    def summary(self) -> dict[str, object]:
        """Returns the summary as plain JSON types."""
        return {
            "cases": len(self.rows),
            "failed": self.failed,
            "patients": len({row.patient for row in self.rows}),
            "metrics": {m: {name: asdict(s) for name, s in by.items()} for m, by in self.spreads().items()},
            "note": _NOT_FOR,
        }

    def table(self) -> str:
        """Returns the summary as lines of text."""
        head = f"{'':17} {'':11} {'mean':>8}  {'95 % interval':>16}  {'median [quartiles]':>22}  patients"
        lines = [head]
        for metric, by in self.spreads().items():
            title, digits = _METRICS[metric]
            lines += [_line(title if name == "prediction" else "", name, s, digits) for name, s in by.items()]
        lines.append(f"{len(self.rows) - self.failed} of {len(self.rows)} cases scored. {_NOT_FOR}")
        return "\n".join(lines) + "\n"


def evaluate(pairs: Sequence[Pair], predict: Callable[[Case], Result], output: Path) -> Evaluation:
    """Predicts every case, scores it by `medgen.metrics.synthesis`, and writes what came out.

    Writes `metrics.csv` (after every case, so that a killed run leaves what it had), `summary.json`, `summary.txt`
    and `pictures/`, with source, prediction, truth and difference side by side.

    Args:
        pairs: cases with their truths.
        predict: from a case to its result on the input's grid.
        output: folder to write to.

    Raises:
        NoInputError: there are no pairs.
        OutputError: the folder cannot be written.
    """
    if not pairs:
        raise NoInputError("expected cases with a truth, got none; look at the split with `medgen manifest check`")
    rows: list[Row] = []
    for number, pair in enumerate(pairs, 1):
        rows.append(_score_pair(pair, predict, output))
        logger.info("%d of %d: %s", number, len(pairs), describe(rows[-1]))
        atomic_text(output / "metrics.csv", metrics_csv(rows))
    evaluation = Evaluation(tuple(rows))
    atomic_text(output / "summary.json", json.dumps(evaluation.summary(), indent=2) + "\n")
    atomic_text(output / "summary.txt", evaluation.table())
    return evaluation


def describe(row: Row) -> str:
    """Returns one line about a row."""
    if row.score is None:
        return f"{row.case} failed: {row.reason}"
    return f"{row.case} {row.score.psnr_db:.2f} dB, SSIM {row.score.ssim:.3f}"


def metrics_csv(rows: Sequence[Row]) -> str:
    """Returns the rows as CSV with a header; empty where a case has no number."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    kinds = ("", "negative_")
    numbers = [f"{kind}{metric}" for kind in kinds for metric in _METRICS]
    writer.writerow(["case", "patient", "status", "reason", *numbers, "voxels", "flags", "seconds", "picture"])
    for row in rows:
        scores = [_cell(getattr(score, metric, None)) for score in (row.score, row.negative) for metric in _METRICS]
        voxels = row.score.voxels if row.score else ""
        rest = [voxels, " ".join(row.flags), _cell(row.seconds, 2), row.picture]
        writer.writerow([row.case, row.patient, row.status, row.reason, *scores, *rest])
    return stream.getvalue()


def _score_pair(pair: Pair, predict: Callable[[Case], Result], output: Path) -> Row:
    try:
        start = perf_counter()
        result = predict(pair.case)
        seconds = perf_counter() - start
        truth, moved = _on_grid_of(result, pair.truth, "bilinear")
        brain = None if pair.brain is None else _on_grid_of(result, pair.brain, "nearest")[0]
        score = score_synthesis(result.image, truth, result.source, brain)
        negative = score_synthesis(result.source.max() - result.source, truth, result.source, brain)
    except MedgenError as error:
        return Row(pair.case.name, pair.patient, "failed", str(error))
    flags = (*result.flags, *((REGRIDDED_FLAG,) if moved else ()))
    picture = Path("pictures") / pair.case.stem.parent / f"{pair.case.stem.name}.png"
    write_comparison(result, truth, output / picture)
    return Row(pair.case.name, pair.patient, "done", "", score, negative, flags, seconds, picture.as_posix())


def _on_grid_of(result: Result, case: Case, mode: str) -> tuple[Volume, bool]:
    """Reads a volume; resamples it by its header where its grid differs from the result's, 0 outside."""
    image = read_image(case)
    x, y, z = image.shape[1:]
    if not Grid((x, y, z), np.asarray(image.affine, dtype=np.float64)).differs_from(result.grid):
        return np.asarray(image[0].numpy(), dtype=np.float32), False
    resample = SpatialResample(mode=mode, padding_mode="zeros", dtype=torch.float64)
    plain = MetaTensor(image.as_tensor(), affine=image.affine)
    moved = resample(plain, dst_affine=torch.from_numpy(result.grid.affine), spatial_size=result.grid.shape)
    return np.asarray(moved[0].numpy(), dtype=np.float32), True


def _line(title: str, name: str, s: Spread, digits: int) -> str:
    interval = "one patient" if s.interval is None else f"{s.interval[0]:.{digits}f} to {s.interval[1]:.{digits}f}"
    middle = f"{s.median:.{digits}f} [{s.quartiles[0]:.{digits}f}, {s.quartiles[1]:.{digits}f}]"
    return f"{title:17} {name:11} {s.mean:8.{digits}f}  {interval:>16}  {middle:>22}  {s.patients}"


def _cell(value: float | None, digits: int = 5) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"
