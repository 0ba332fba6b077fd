"""The window inferer that does what one of MONAI's is set to do, for configs written for MONAI."""

from collections.abc import Mapping
from typing import Any

import torch
from monai.data.utils import compute_importance_map
from monai.inferers import SlidingWindowInferer

from medgen.infer.windows import Precision, WindowInferer

_PADDING_MODES = ("constant", "reflect", "replicate", "circular")
# Of these the output does not depend: windows in one pass, a bar on the screen, an axis that only buffers use.
_OF_NO_CONSEQUENCE = ("sw_batch_size", "progress", "buffer_dim")
_HONOURED = ("roi_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval", "sw_device", "device")
_MUST_BE_UNSET: dict[str, Any] = {
    "cpu_thresh": None,
    "buffer_steps": None,
    "with_coord": False,
}


def window_inferer_like(inferer: object, precision: Precision = "fp32") -> WindowInferer | None:
    """Returns an inferer with the same windows, weights, padding and places as MONAI's, or None.

    In fp32 its outputs are those of `inferer` within 1e-5 of the values' range, for float32 images. It is None for
    everything but a plain `SlidingWindowInferer` (a subclass does something else), and for one with weights other than
    its mode's, buffers, a threshold for the CPU, coordinates, or an attribute that MONAI
    1.6 does not have. Not taken over: the windows in one pass, which are chosen anew, and the progress bar.

    Args:
        inferer: of any kind.
        precision: of the new one on CUDA; MONAI's is fp32 unless its caller casts.

    Example:
        >>> from monai.inferers import SimpleInferer
        >>> window_inferer_like(SlidingWindowInferer(96, 4, overlap=0.5, mode="gaussian")).overlap
        0.5
        >>> window_inferer_like(SimpleInferer()) is None
        True
    """
    given = _settings_of(inferer)
    if given is None:
        return None
    padding = str(getattr(given["padding_mode"], "value", given["padding_mode"]))
    if padding not in _PADDING_MODES or (padding != "constant" and given["cval"] != 0):
        return None
    try:
        return WindowInferer(
            roi_size=given["roi_size"],
            overlap=given["overlap"],
            mode=given["mode"].value,
            precision=precision,
            padding=float(given["cval"]) if padding == "constant" else padding,
            sigma_scale=given["sigma_scale"],
            sw_device=given["sw_device"],
            device=given["device"],
        )
    except (TypeError, ValueError):  # MONAI says what is wrong with it, once it is called
        return None


def _settings_of(inferer: object) -> dict[str, Any] | None:
    """The settings of a plain `SlidingWindowInferer` that has no others than those that can be honoured; else None."""
    if type(inferer) is not SlidingWindowInferer:
        return None
    given = {name: value for name, value in vars(inferer).items() if name not in _OF_NO_CONSEQUENCE}
    if not _are_its_own_weights(given.pop("roi_weight_map", None), given):
        return None
    if any(given.pop(name, unset) is not unset for name, unset in _MUST_BE_UNSET.items()):
        return None
    return given if set(given) == set(_HONOURED) else None


def _are_its_own_weights(weights: torch.Tensor | None, given: Mapping[str, Any]) -> bool:
    """Says whether weights are what MONAI makes of the other settings, computed ahead (`cache_roi_weight_map`)."""
    if weights is None:
        return True
    try:
        made = compute_importance_map(tuple(weights.shape), mode=given["mode"], sigma_scale=given["sigma_scale"])
    except (KeyError, ValueError):
        return False
    return bool(torch.allclose(weights.cpu(), made.cpu()))
