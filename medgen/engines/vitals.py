"""What health is read from: the numbers and images that one direction of a training published lately."""

from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medgen.engines import symptoms
from medgen.engines.symptoms import Limits

Ailment = Literal["vanishing", "collapse", "oscillation", "dead"]

_SERIES = ("loss", "g_loss", "d_loss", "d_real", "d_fake", "d_accuracy", "g_pull", "g_norm", "d_norm")
_TOLD = ("d_accuracy", "g_pull", "g_norm", "d_norm", "diversity")
_POOLED = 4
_IMAGES_KEPT, _FEWEST_IMAGES = 64, 8
_LEAST_MEASURED = 4  # of diversity, for a verdict; see `symptoms.collapse`


class Vitals:
    """The last numbers and images of one generator and its discriminator.

    Args:
        window: iterations that are looked back on.
        every: iterations between two measurements of diversity.
    """

    def __init__(self, window: int, every: int) -> None:
        self.history: dict[str, deque[float]] = {name: deque(maxlen=window) for name in _SERIES}
        self.history["diversity"] = deque(maxlen=max(_LEAST_MEASURED, window // every))
        self.images: dict[str, deque[Tensor]] = {name: deque(maxlen=_IMAGES_KEPT) for name in ("pred", "real")}
        self.gaps: deque[Tensor] = deque(maxlen=window)
        self.spread, self.strongest_pull = 0.0, 0.0

    def take(self, output: Mapping[str, Any]) -> None:
        """Takes in what one iteration published; what is absent is not judged."""
        for name in _SERIES:
            if name in output:
                self.history[name].append(float(output[name]))
        if "pred" in output and "real" in output:
            pred, real = _thumbnails(output["pred"]), _thumbnails(output["real"])
            self.images["pred"].extend(pred)
            self.images["real"].extend(real)
            self.gaps.append(pred.mean(0) - real.mean(0))

    def measure(self) -> None:
        """Measures how different samples are from each other, and how strong the pull on the generator has been."""
        pred, real = (list(self.images[name]) for name in ("pred", "real"))
        if min(len(pred), len(real)) >= _FEWEST_IMAGES:
            self.spread = symptoms.mean_distance(torch.stack(real).numpy())
            if self.spread > 0:
                self.history["diversity"].append(symptoms.mean_distance(torch.stack(pred).numpy()) / self.spread)
        self.strongest_pull = max(self.strongest_pull, symptoms.peak(self.history["g_pull"]))

    def judged(self, limits: Limits, epoch_length: int) -> dict[Ailment, str | None]:
        """Returns a sentence for each ailment that is seen."""
        path = torch.stack(list(self.gaps)).numpy() if self.gaps else np.zeros((0, 1), np.float32)
        return {
            "dead": symptoms.dead(self.history, limits),
            "vanishing": symptoms.vanishing(self.history, limits, self.strongest_pull),
            "collapse": symptoms.collapse(self.history, limits),
            "oscillation": symptoms.oscillation(self.history, path, self.spread, limits, epoch_length),
        }

    def summary(self) -> dict[str, float]:
        """Returns the means over the window, for a log."""
        means = {name: sum(values) / len(values) for name, values in self.history.items() if values}
        return {name: means[name] for name in _TOLD if name in means}

    def forget(self) -> None:
        """Empties the window; the strongest pull ever stays."""
        remembered: list[deque[Any]] = [*self.history.values(), *self.images.values(), self.gaps]
        for values in remembered:
            values.clear()

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed training must know."""
        return {
            "strongest_pull": self.strongest_pull,
            "spread": self.spread,
            "history": {name: list(values) for name, values in self.history.items()},
            "images": {name: list(rows) for name, rows in self.images.items()},
            "gaps": list(self.gaps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a checkpoint."""
        self.strongest_pull, self.spread = float(state["strongest_pull"]), float(state["spread"])
        self.forget()
        for name, values in state["history"].items():
            self.history[name].extend(values)
        for name, rows in state["images"].items():
            self.images[name].extend(rows)
        self.gaps.extend(state["gaps"])


def _thumbnails(images: Tensor) -> Tensor:
    """Shrinks `(B, C, ...)` to at most 4 voxels along each axis `(B, F)`: enough to tell images apart."""
    images = images.detach().float().cpu()
    spatial = images.shape[2:]
    if spatial:
        pool: dict[int, Any] = {
            1: functional.adaptive_avg_pool1d,
            2: functional.adaptive_avg_pool2d,
            3: functional.adaptive_avg_pool3d,
        }
        images = pool[len(spatial)](images, [min(n, _POOLED) for n in spatial])
    return images.flatten(1)
