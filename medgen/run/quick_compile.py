"""A bundle, opened with torch and MONAI, becomes a plan that needs neither; or none, where that would not be exact.

What is inspected are the objects that the config has made, not the config: exact classes of one version of MONAI, whose
options are all honoured or refused.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import monai
import numpy as np
import torch
from monai import transforms as mt
from monai.transforms.utils import is_positive
from monai.utils import ensure_tuple_rep
from torch import nn

from medgen.infer.backends import FORWARD, OneSize, Streamed
from medgen.infer.openvino_network import OpenVinoNetwork
from medgen.infer.window_mean import Windows, profile_name
from medgen.infer.windows import WindowInferer
from medgen.prepare.planes import PADDINGS
from medgen.run.bundle import REQUIRED_IDS, OpenBundle
from medgen.run.catalog import BundleFolder, find_bundle
from medgen.run.predict import PRED
from medgen.run.quick_plan import QuickPlan, keep, on_cpu, parts_of
from medgen.run.request import RunRequest
from medgen.run.trust_code import CONFIG_SUFFIXES, load_config

logger = logging.getLogger(__name__)

_MONAI = "1.6.1"  # whose transforms `quick_steps` does
_FLOAT32 = (np.float32, torch.float32)
_KNOWN_CODE = {"torch", "monai", "medgen", "scripts"}  # packages of networks whose version or files a plan rests on
# What makes a config's value, or a network, depend on more than the files of the bundle.
_OUTSIDE = re.compile(
    r"environ|getenv|getcwd|\bopen\(|read_text|read_bytes|glob|listdir|iterdir|exists|is_?file|\bload\(|urandom|datetime"
)
_REFERENCE = re.compile(r"@(\w+)")

_Made = Any  # an object of MONAI, which is untyped
_Steps = list[dict[str, Any]]
_Rule = Callable[[_Made], _Steps]


class _NoPlan(Exception):  # noqa: N818 - no error: the usual path is as good
    """Why a bundle cannot be done without torch."""


def keep_plan(request: RunRequest, bundle: OpenBundle, network: nn.Module) -> None:
    """Keeps a plan of the bundle for later runs of the same request, if there can be one.

    Args:
        request: what was asked for.
        bundle: opened for it, on its back end.
        network: that the back end has taken the place of.
    """
    if bundle.computed_by is None or bundle.computed_by.backend != "openvino":
        return
    try:
        plan, entry = compile_plan(bundle), find_bundle(request.bundle)
        parts = parts_of(request, entry)
        _require_alone(request, bundle, entry, parts["files"])
        code = {type(layer).__module__.partition(".")[0] for layer in network.modules()}
        _require(code <= _KNOWN_CODE, f"a network from {', '.join(sorted(code - _KNOWN_CODE))}")
        keep(plan, parts)
    except _NoPlan as reason:
        logger.debug("no plan of %s: %s", bundle.name, reason)
    except (OSError, TypeError, ValueError) as error:  # a cache or a bundle that changes meanwhile
        logger.debug("no plan of %s could be kept: %s", bundle.name, error)


def compile_plan(bundle: OpenBundle) -> QuickPlan:
    """Returns what an open bundle on OpenVINO does to a case.

    Raises:
        _NoPlan: why it cannot be one.
    """
    _require(monai.__version__ == _MONAI, f"MONAI {monai.__version__}")
    _require(bundle.input_check is None and bundle.reference is None and not bundle.scoring, "it checks or scores")
    _require(bundle.metadata.input_channels in {None, 1}, "several channels as input")
    network = _network(bundle)
    assert bundle.computed_by is not None  # noqa: S101 - a network of OpenVINO was chosen
    return QuickPlan(
        bundle=bundle.name,
        bundle_version=bundle.version,
        weights_sha256=bundle.weights_sha256,
        own=bundle.own,
        settings=dict(bundle.settings),
        flags=bundle.flags,
        output=bundle.output,
        computed_by=bundle.computed_by,
        network=network.requests.file,
        threads=network.requests.threads,
        windows=replace(_windows(bundle.inferer), only_size=bundle.computed_by.only_sizes.get(FORWARD)),
        before=_before(bundle),
        after=_after(bundle),
    )


def _require(fits: bool, reason: str) -> None:
    if not fits:
        raise _NoPlan(reason)


def _require_alone(request: RunRequest, bundle: OpenBundle, entry: BundleFolder, files: Mapping[str, str]) -> None:
    """Refuses what rests on more than the files that are part of a plan's key, or on other ones by now."""
    _require(on_cpu(request.device), "a GPU may be wanted")
    usual = next((files[name] for name in ("models/model.pt", "models/model.ts") if name in files), "")
    _require(usual == bundle.weights_sha256, "weights at another place")
    configs = [f"configs/inference{suffix}" for suffix in CONFIG_SUFFIXES]
    config = next(name for name in configs if name in files)
    _require(files[config] == bundle.settings["config_sha256"], "a config that has changed")
    told = json.loads((entry.folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    _require(told == bundle.metadata.fields, "metadata that have changed")
    for text in (*request.changes, *_reached(load_config(entry.folder / config))):
        _require(not text.startswith("%"), "a config in several files")
        _require(not (_OUTSIDE.search(text) and "$" in text), "a config that looks around")
    for name in files:
        script = name.startswith("scripts/") and name.endswith(".py")
        _require(
            not (script and _OUTSIDE.search((entry.folder / name).read_text(encoding="utf-8"))), f"what {name} does"
        )


def _reached(config: Mapping[str, Any]) -> Iterator[str]:
    """Every string of the config that the parts of a run rest on."""
    waiting, seen = [*REQUIRED_IDS], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for text in _strings(config.get(name)):
            waiting += _REFERENCE.findall(text)
            yield text


def _strings(part: object) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict | list):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from _strings(inner)


def _network(bundle: OpenBundle) -> OpenVinoNetwork:
    network: object = bundle.network
    ways = vars(network)["_ways"] if type(network) is Streamed else {}
    _require(list(ways) == [FORWARD], "another way of using the network")
    way = ways[FORWARD]
    converted = way.way if isinstance(way, OneSize) else way
    assert isinstance(converted, OpenVinoNetwork)  # noqa: S101 - OpenVINO was chosen
    _require(converted.requests.outputs == 1, "several outputs")
    return converted


def _windows(inferer: object) -> Windows:
    _require(type(inferer) is WindowInferer, f"the inferer {type(inferer).__name__}")
    assert isinstance(inferer, WindowInferer)  # noqa: S101 - for mypy
    _require(inferer.mirror is None and inferer.spatial_dim is None, "mirrored or sliced windows")
    _require(inferer.sw_batch_size in {None, 1} and inferer.memory_budget_bytes is None, "a batch or budget of its own")
    _require(_is_host(inferer.device) and _is_host(inferer.sw_device), "a device of its own")
    roi = inferer.roi_size if isinstance(inferer.roi_size, Sequence) else (inferer.roi_size,) * 3
    _require(len(roi) == 3, "windows of other than three axes")
    sides = [int(side or 0) for side in roi]
    multiples, sigmas = (list(ensure_tuple_rep(each, 3)) for each in (inferer.roi_multiple, inferer.sigma_scale))
    return Windows(
        roi_size=sides,
        overlap=list(ensure_tuple_rep(inferer.overlap, 3)),
        roi_multiple=multiples,
        sigma_scale=sigmas,
        mode=str(inferer.mode),
        padding=inferer.padding if isinstance(inferer.padding, str) else float(inferer.padding),
        adapt=inferer.adapt,
        profiles={} if inferer.mode == "constant" else _profiles(sides, multiples, sigmas),
    )


def _profiles(sides: Sequence[int], multiples: Sequence[int], sigmas: Sequence[float]) -> dict[str, list[float]]:
    """Torch's weights along each axis, for windows of these sides and those that are fitted to an image."""
    found = {}
    for most, multiple, sigma in zip(sides, multiples, sigmas, strict=True):
        for side in {most, *range(multiple, most, multiple)} - {0}:
            at = torch.arange(-(side - 1) / 2.0, (side - 1) / 2.0 + 1, dtype=torch.float)
            weights: list[float] = torch.exp(at**2 / (-2 * (side * sigma) ** 2)).tolist()
            found[profile_name(side, sigma)] = weights
    return found


def _before(bundle: OpenBundle) -> _Steps:
    load, *others = _steps_of(bundle.preprocessing)
    _require(type(load) is mt.LoadImaged, type(load).__name__)
    loader = load._loader
    _require(loader.image_only and loader.dtype in _FLOAT32 and not loader.simple_keys, "how LoadImaged loads")
    _require(loader.pattern is None, "metadata that LoadImaged prunes")
    channelled, steps = bool(loader.ensure_channel_first), _Steps()
    for step in others:
        if type(step) is mt.EnsureChannelFirstd and not channelled:
            _require(_keys(step) == (bundle.image_key,), "other keys")
            _require(step.adjuster.input_channel_dim in {None, "no_channel"}, "a channel that the image has not")
            channelled = True
            continue
        _require(channelled or type(step) is mt.EnsureTyped, f"{type(step).__name__} before there is a channel")
        steps += _rule(step, (bundle.image_key,), {**_ANYWHERE, **_BEFORE})
    _require(channelled, "no channel")
    return steps


def _after(bundle: OpenBundle) -> _Steps:
    steps: _Steps = []
    for step in _steps_of(bundle.postprocessing):
        if type(step) is not mt.Invertd:
            steps += _rule(step, (PRED,), {**_ANYWHERE, **_AFTER})
            continue
        _require(not any(known["do"] == "invert" for known in steps), "several inversions")
        _require(_keys(step) == (PRED,) and tuple(step.orig_keys) == (bundle.image_key,), "other keys")
        same = list(map(id, _steps_of(step.transform))) == list(map(id, bundle.preprocessing.transforms))
        _require(same, "an inversion of something else")
        _require(_is_host(step.device[0]) and not callable(step.post_func[0]), "a device or function of Invertd")
        steps.append({"do": "invert", "nearest": bool(step.nearest_interp[0])})
    return steps


def _steps_of(compose: _Made) -> Sequence[_Made]:
    _require(type(compose) is mt.Compose and not compose.lazy and not compose.overrides, "a Compose of another kind")
    return tuple(compose.flatten().transforms)


def _rule(step: _Made, keys: tuple[str, ...], rules: Mapping[type, _Rule]) -> _Steps:
    _require(type(step) in rules, f"the transform {type(step).__name__}")
    _require(_keys(step) == keys, f"other keys of {type(step).__name__}")
    _require(not getattr(step, "lazy", False), "lazy transforms")
    return rules[type(step)](step)


def _keys(step: _Made) -> tuple[str, ...]:
    return tuple(map(str, step.keys))


def _is_host(device: object) -> bool:
    return device is None or str(device) == "cpu"


def _number(value: _Made) -> float | None:
    _require(value is None or isinstance(value, int | float | np.number), f"a value {type(value).__name__}")
    return None if value is None else float(value)


# What each transform does, in the words of `quick_steps`.


def _typed(step: _Made) -> _Steps:
    converter = step.converter
    _require(converter.data_type == "tensor" and converter.track_meta, "an image that is no MetaTensor")
    _require(step.dtype[0] is None or step.dtype[0] in _FLOAT32, "another type of voxels")
    _require(_is_host(converter.device), "a device of EnsureTyped")
    return []


def _turned(step: _Made) -> _Steps:
    turn = step.ornt_transform
    _require(type(turn) is mt.Orientation and turn.labels is None, "labels of Orientationd")
    codes = "" if turn.as_closest_canonical else str(turn.axcodes)[:3]
    _require(turn.as_closest_canonical or len(codes) == 3, "axcodes of Orientationd")
    return [{"do": "turn", "codes": codes}]


def _spaced(step: _Made) -> _Steps:
    spacing = step.spacing_transform
    _require(type(spacing) is mt.Spacing and not spacing.recompute_affine and not step.scale_extent[0], "its extent")
    _require(bool(np.isnan([*spacing.min_pixdim, *spacing.max_pixdim]).all()), "bounds of pixdim")
    mode, padding = (str(getattr(word, "value", word)) for word in (step.mode[0], step.padding_mode[0]))
    _require(mode in {"bilinear", "nearest"} and padding in PADDINGS, f"{mode} with {padding}")
    _require(step.dtype[0] in (None, np.float64, torch.float64) and spacing.sp_resample.dtype is np.float64, "its type")
    pixdim = [float(side) for side in spacing.pixdim[:3]]
    pixdim += pixdim[-1:] * (3 - len(pixdim))
    how = [mode, padding, bool(step.align_corners[0])]
    return [{"do": "space", "pixdim": pixdim, "diagonal": bool(spacing.diagonal), "how": how}]


def _cropped(step: _Made) -> _Steps:
    cropper, key = step.cropper, step.keys[0]
    _require(type(cropper) is mt.CropForeground and step.source_key == key, "another image to crop by")
    _require(cropper.select_fn is is_positive and cropper.channel_indices is None, "another foreground")
    _require(set(ensure_tuple_rep(cropper.k_divisible, 3)) == {1}, "a crop to multiples")
    margin = [int(side) for side in ensure_tuple_rep(cropper.margin, 3)]
    return [{"do": "crop", "margin": margin, "allow_smaller": bool(cropper.allow_smaller)}]


def _scaled(step: _Made) -> _Steps:
    scaler = step.scaler
    low, high = _number(scaler.minv), _number(scaler.maxv)
    _require(low is not None and high is not None and scaler.dtype in _FLOAT32, "how ScaleIntensityd scales")
    return [{"do": "scale", "minv": low, "maxv": high}]


def _bounds(scaler: _Made) -> dict[str, Any]:
    low, high = _number(scaler.b_min), _number(scaler.b_max)
    _require(scaler.dtype in _FLOAT32, "another type of voxels")
    _require(not scaler.clip or low is not None or high is not None, "nothing to clip to")
    return {"b_min": low, "b_max": high, "clip": bool(scaler.clip)}


def _ranged(step: _Made) -> _Steps:
    scaler = step.scaler
    low, high = _number(scaler.a_min), _number(scaler.a_max)
    _require(low is not None and high is not None, "no range of values")
    return [{"do": "range", "a_min": low, "a_max": high, **_bounds(scaler)}]


def _by_percentiles(step: _Made) -> _Steps:
    scaler = step.scaler
    _require(not scaler.relative, "relative percentiles")
    return [
        {"do": "percentiles", "lower": _number(scaler.lower), "upper": _number(scaler.upper), **_bounds(scaler)},
    ]


def _normalized(step: _Made) -> _Steps:
    scaler = step.normalizer
    _require(
        scaler.subtrahend is None and scaler.divisor is None and scaler.dtype in _FLOAT32, "given mean or deviation"
    )
    return [{"do": "normalize", "nonzero": bool(scaler.nonzero)}]


def _shifted(step: _Made) -> _Steps:
    _require(not step.shifter.safe and step.factor_key[0] is None, "options of ShiftIntensityd")
    return [{"do": "shift", "offset": _number(step.shifter.offset)}]


def _activated(step: _Made) -> _Steps:
    converter = step.converter
    _require(step.other[0] is None and converter.other is None and not converter.kwargs, "options of Activationsd")
    _require(not (step.sigmoid[0] and step.softmax[0]), "two activations")
    return [{"do": name} for name in ("sigmoid", "softmax") if getattr(step, name)[0]]


def _discrete(step: _Made) -> _Steps:
    _require(step.to_onehot[0] is None and not step.converter.kwargs, "options of AsDiscreted")
    rounded = step.rounding[0] is not None
    _require(not rounded or (step.rounding[0] == "torchrounding" and step.threshold[0] is None), "a rounding")
    return [
        {"do": "discrete", "argmax": bool(step.argmax[0]), "threshold": _number(step.threshold[0]), "rounded": rounded}
    ]


_ANYWHERE: dict[type, _Rule] = {mt.EnsureTyped: _typed, mt.ScaleIntensityRanged: _ranged, mt.ShiftIntensityd: _shifted}
_BEFORE: dict[type, _Rule] = {  # of one channel, so that channels make no difference
    mt.Orientationd: _turned,
    mt.Spacingd: _spaced,
    mt.CropForegroundd: _cropped,
    mt.ScaleIntensityd: _scaled,
    mt.ScaleIntensityRangePercentilesd: _by_percentiles,
    mt.NormalizeIntensityd: _normalized,
}
_AFTER: dict[type, _Rule] = {mt.Activationsd: _activated, mt.AsDiscreted: _discrete}
