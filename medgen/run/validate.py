"""Measures a network while it trains, on whole volumes as inference sees them, and keeps the best weights."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from medgen.engines.player import rank
from medgen.write.atomic import atomic_text, atomic_write
from medgen.write.sheet import write_sheet

Volume = npt.NDArray[np.float32]
Score = Callable[[Volume, Mapping[str, Volume]], Mapping[str, float]]
BEST, TABLE, SHEETS = "best.pt", "validation.csv", "samples"
_SHOWN = 4


class Validator:
    """An ignite handler that predicts every validation case after some epochs, scores it and writes what it saw.

    Of the processes of `torchrun` the first does it alone. Writes `validation.csv` (a row a case and epoch),
    `samples/epoch-N.png` and, whenever the mean of `key` has improved, `best.pt`.

    Args:
        network: to measure: the one that will be kept, such as the moving average.
        dataset: of items with `image` and `target`, `(1, X, Y, Z)`, and what else `score` reads.
        inferer: called with (image `(1, 1, X, Y, Z)`, network).
        score: of (prediction `(X, Y, Z)`, the item's volumes).
        key: of the score that decides which weights are best.
        output_dir: where to write.
        interval: epochs between two measurements; the last epoch is always measured.
        lower_is_better: whether a smaller `key` is the better one.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Sequence[Mapping[str, Any]],
        inferer: Callable[[Tensor, nn.Module], Tensor],
        score: Score,
        key: str,
        output_dir: str,
        interval: int = 5,
        lower_is_better: bool = False,
    ) -> None:
        self.network, self.dataset, self.inferer, self.score = network, dataset, inferer, score
        self.key, self.folder, self.interval = key, Path(output_dir), interval
        self.sign = -1.0 if lower_is_better else 1.0
        self.best, self.best_means = -math.inf, dict[str, float]()
        self.rows: list[dict[str, Any]] = []
        self.listen: Callable[[Mapping[str, float]], None] = lambda means: None

    def attach(self, engine: Engine) -> None:
        """Measures after epochs of this engine."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Measures, if it is time."""
        epoch = int(engine.state.epoch)
        if (
            rank() > 0
            or len(self.dataset) == 0
            or (epoch % self.interval and epoch != int(engine.state.max_epochs or 0))
        ):
            return
        device = engine.state.device
        sheet: list[list[npt.NDArray[np.float32]]] = []
        scores: list[dict[str, float]] = []
        for number in range(len(self.dataset)):
            item = self.dataset[number]
            volumes = {k: _volume(v) for k, v in item.items() if torch.is_tensor(v)}
            prediction = self._predict(item["image"], device)
            scores.append(dict(self.score(prediction, volumes)))
            self.rows.append({"epoch": epoch, "case": number, "patient": item.get("patient", ""), **scores[-1]})
            if len(sheet) < _SHOWN:
                sheet.append([volumes["image"], prediction, volumes["target"]])
        write_sheet(sheet, ["source", "prediction", "truth"], self.folder / SHEETS / f"epoch-{epoch:04d}.png")
        atomic_text(self.folder / TABLE, self.table())
        means = _means(scores)
        self._keep_best(means)
        self.listen(means)

    def table(self) -> str:
        """Returns all measurements as CSV."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return stream.getvalue()

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed training must know."""
        return {"best": self.best, "best_means": self.best_means, "rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a checkpoint."""
        self.best, self.rows = float(state["best"]), list(state["rows"])
        self.best_means = dict(state["best_means"])

    @torch.no_grad()  # not inference mode: some scores follow a gradient
    def _predict(self, image: Tensor, device: torch.device) -> Volume:
        mode = self.network.training
        self.network.eval()
        prediction = self.inferer(torch.as_tensor(image)[None].to(device), self.network)
        self.network.train(mode)
        return _volume(prediction[0])

    def _keep_best(self, means: Mapping[str, float]) -> None:
        value = self.sign * means.get(self.key, math.nan)
        if value > self.best:
            self.best, self.best_means = value, dict(means)
            with atomic_write(self.folder / BEST) as part:
                torch.save(self.network.state_dict(), part)


def _means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Averages over the cases that have a number: overlap of what neither image has is none."""
    known = {name: [s[name] for s in scores if not math.isnan(s[name])] for name in scores[0]}
    return {name: float(np.mean(values)) for name, values in known.items() if values}


def _volume(tensor: Tensor) -> Volume:
    return np.asarray(torch.as_tensor(tensor)[0].float().cpu().numpy(), dtype=np.float32)
