"""A bundle against the truth: one row a case, a summary over patients with intervals, and pictures.

A simple answer is scored beside every prediction (for an MR translation, the negative of the input; for a CT, the best
monotone mapping of its intensities): what a bundle has earned is the distance from it.
"""

import csv
import io
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
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
from medgen.read.reader import read_image
from medgen.run.compare import write_comparison
from medgen.run.protocol import PROTOCOLS, Protocol
from medgen.write.atomic import atomic_text

logger = logging.getLogger(__name__)

Volume = npt.NDArray[np.float32]
REGRIDDED_FLAG = "truth-regridded"
_MOST = 100.0  # identical images have an infinite PSNR, which no mean survives
_NOT_FOR = "For research. Not for diagnosis, not a medical device."


@dataclass(frozen=True)
class Pair:
    """A case, its truth, and whose it is.

    Attributes:
        case: to predict from.
        truth: what the prediction should have been.
        patient: cases of one patient count as one in the intervals.
        mask: of the brain or body; voxels where it is 0 do not count.
    """

    case: Case
    truth: Case
    patient: str
    mask: Case | None = None


@dataclass(frozen=True)
class Row:
    """One case of the evaluation.

    Attributes:
        case: its name.
        patient: whose it is.
        status: `"done"` or `"failed"`.
        reason: why it failed, else "".
        score: of the prediction, by metric; None where there is no prediction.
        simple: the same protocol on the simple answer.
        flags: of the prediction, and `"truth-regridded"` where the truth lay on another grid.
        seconds: that the prediction took.
        picture: relative path, or "".
    """

    case: str
    patient: str
    status: str
    reason: str = ""
    score: Mapping[str, float] | None = None
    simple: Mapping[str, float] | None = None
    flags: tuple[str, ...] = ()
    seconds: float = math.nan
    picture: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All cases of an evaluation; `table` is what people read, `summary` what programs read."""

    rows: tuple[Row, ...]
    protocol: Protocol = PROTOCOLS["synthesis"]

    @property
    def failed(self) -> int:
        """How many cases have no score."""
        return sum(row.score is None for row in self.rows)

    def spreads(self) -> dict[str, dict[str, Spread]]:
        """Returns, by metric, the spread over patients of `prediction`, of the simple answer, and of their difference.

        The simple answer goes by its name; the difference is called `gain`, and is negative where an error shrank.
        """
        found: dict[str, dict[str, Spread]] = {}
        for metric in self.protocol.metrics:
            scored = [
                (row.score[metric], row.simple[metric], row.patient)
                for row in self.rows
                if row.score is not None and row.simple is not None
            ]
            most = _MOST if metric == "psnr_db" else math.inf
            values = np.minimum(np.array([one[:2] for one in scored]).reshape(-1, 2), most)
            columns = {
                "prediction": values[:, 0],
                self.protocol.baseline: values[:, 1],
                "gain": values[:, 0] - values[:, 1],
            }
            patients = np.array([one[2] for one in scored])
            # The overlap of what neither image has, such as air, is no number.
            by = {
                n: spread(c[~np.isnan(c)], patients[~np.isnan(c)].tolist())
                for n, c in columns.items()
                if (~np.isnan(c)).any()
            }
            if by:
                found[metric] = by
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
            title, digits = self.protocol.metrics[metric]
            lines += [_line(title if name == "prediction" else "", name, s, digits) for name, s in by.items()]
        lines.append(f"{len(self.rows) - self.failed} of {len(self.rows)} cases scored. {_NOT_FOR}")
        return "\n".join(lines) + "\n"


def evaluate(
    pairs: Sequence[Pair],
    predict: Callable[[Case], Result],
    output: Path,
    protocol: Protocol = PROTOCOLS["synthesis"],
) -> Evaluation:
    """Predicts every case, scores it by a protocol, and writes what came out.

    Writes `metrics.csv` (after every case, so that a killed run leaves what it had), `summary.json`, `summary.txt`
    and `pictures/`, with source, prediction, truth and difference side by side.

    Args:
        pairs: cases with their truths.
        predict: from a case to its result on the input's grid.
        output: folder to write to.
        protocol: how to score.

    Raises:
        NoInputError: there are no pairs.
        OutputError: the folder cannot be written.
    """
    if not pairs:
        raise NoInputError("expected cases with a truth, got none; look at the split with `medgen manifest check`")
    rows: list[Row] = []
    for number, pair in enumerate(pairs, 1):
        rows.append(_score_pair(pair, predict, output, protocol))
        logger.info("%d of %d: %s", number, len(pairs), describe(rows[-1], protocol))
        atomic_text(output / "metrics.csv", metrics_csv(rows, protocol))
    evaluation = Evaluation(tuple(rows), protocol)
    atomic_text(output / "summary.json", json.dumps(evaluation.summary(), indent=2) + "\n")
    atomic_text(output / "summary.txt", evaluation.table())
    return evaluation


def describe(row: Row, protocol: Protocol = PROTOCOLS["synthesis"]) -> str:
    """Returns one line about a row."""
    if row.score is None:
        return f"{row.case} failed: {row.reason}"
    return f"{row.case} " + ", ".join(
        f"{title} {row.score[metric]:.{digits}f}" for metric, (title, digits) in protocol.metrics.items()
    )


def metrics_csv(rows: Sequence[Row], protocol: Protocol = PROTOCOLS["synthesis"]) -> str:
    """Returns the rows as CSV with a header; empty where a case has no number."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    kinds = ("", f"{protocol.baseline}_")
    numbers = [f"{kind}{metric}" for kind in kinds for metric in protocol.metrics]
    writer.writerow(["case", "patient", "status", "reason", *numbers, "voxels", "flags", "seconds", "picture"])
    for row in rows:
        both = (row.score or {}, row.simple or {})
        scores = [_cell(score.get(metric)) for score in both for metric in protocol.metrics]
        voxels = row.score["voxels"] if row.score else ""
        rest = [voxels, " ".join(row.flags), _cell(row.seconds, 2), row.picture]
        writer.writerow([row.case, row.patient, row.status, row.reason, *scores, *rest])
    return stream.getvalue()


def _score_pair(pair: Pair, predict: Callable[[Case], Result], output: Path, protocol: Protocol) -> Row:
    try:
        start = perf_counter()
        result = predict(pair.case)
        seconds = perf_counter() - start
        truth, moved = _on_grid_of(result, pair.truth, "bilinear", protocol.outside)
        mask = None if pair.mask is None else _on_grid_of(result, pair.mask, "nearest")[0]
        score = protocol.score(result.image, truth, result.source, mask)
        simple = protocol.score_simple(protocol.simple(result.source, truth, mask), truth, result.source, mask)
    except MedgenError as error:
        return Row(pair.case.name, pair.patient, "failed", str(error))
    flags = (*result.flags, *((REGRIDDED_FLAG,) if moved else ()))
    picture = Path("pictures") / pair.case.stem.parent / f"{pair.case.stem.name}.png"
    write_comparison(result, truth, output / picture)
    return Row(pair.case.name, pair.patient, "done", "", score, simple, flags, seconds, picture.as_posix())


def _on_grid_of(result: Result, case: Case, mode: str, outside: float = 0.0) -> tuple[Volume, bool]:
    """Reads a volume; resamples it by its header where its grid differs from the result's."""
    image = read_image(case)
    x, y, z = image.shape[1:]
    if not Grid((x, y, z), np.asarray(image.affine, dtype=np.float64)).differs_from(result.grid):
        return np.asarray(image[0].numpy(), dtype=np.float32), False
    resample = SpatialResample(mode=mode, padding_mode="zeros", dtype=torch.float64)
    plain = MetaTensor(image.as_tensor() - outside, affine=image.affine)
    moved = resample(plain, dst_affine=torch.from_numpy(result.grid.affine), spatial_size=result.grid.shape)
    return np.asarray(moved[0].numpy() + outside, dtype=np.float32), True


def _line(title: str, name: str, s: Spread, digits: int) -> str:
    interval = "one patient" if s.interval is None else f"{s.interval[0]:.{digits}f} to {s.interval[1]:.{digits}f}"
    middle = f"{s.median:.{digits}f} [{s.quartiles[0]:.{digits}f}, {s.quartiles[1]:.{digits}f}]"
    return f"{title:17} {name:11} {s.mean:8.{digits}f}  {interval:>16}  {middle:>22}  {s.patients}"


def _cell(value: float | None, digits: int = 5) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"
