"""One case through an open bundle, in three steps that may run in three threads: prepare, compute, finish.

What happens to the voxels is what MONAI's `SupervisedEvaluator` does with the same config: collate, infer under
`no_grad`, decollate, post-process; only reading comes before it and writing after it.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import ImageReader, MetaTensor, decollate_batch, list_data_collate

from medgen.case import Case, Findings, Result
from medgen.errors import BundleError, DeviceError, GeometryError, MedgenError
from medgen.geometry import Grid
from medgen.infer.anogan import AnoGanScorer
from medgen.infer.latent import LatentScorer
from medgen.infer.memory import kept_memory
from medgen.infer.normal_scans import ABOVE_FLAG, NormalScans
from medgen.infer.reference import FOREIGN, OUTSIDE_FLAG
from medgen.infer.regions import REGIONS_KEY, SCAN_KEY
from medgen.infer.windows import WindowInferer
from medgen.prepare.flatten import RETINA_KEY
from medgen.read.reader import flags_of
from medgen.run.bundle import OpenBundle
from medgen.run.checks import OWN_GRID_FLAG, Laid, require_one_channel, require_sound, under
from medgen.run.metadata import Metadata

PRED = "pred"  # the key of MONAI's evaluators


@dataclass(frozen=True, eq=False)
class Prepared:
    """One case as the network wants it.

    Attributes:
        case: what it was made from.
        image: as read, `(1, X, Y, Z)`.
        item: what the bundle's preprocessing returned.
        input_sha256: of the input's content, for the provenance.
        flags: from reading and from the bundle's input check.
        seconds: time by stage `[s]`.
    """

    case: Case
    image: MetaTensor
    item: dict[Any, Any]
    input_sha256: str
    flags: tuple[str, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Predicted:
    """One case as the network left it.

    Attributes:
        prepared: the case before; its item is no longer needed and is empty.
        item: of the dictionary transforms, `"pred"` in it, in host memory.
        flags: of this step, such as `"oom-backoff"`.
        seconds: time by stage `[s]`.
    """

    prepared: Prepared
    item: dict[Any, Any]
    flags: tuple[str, ...]
    seconds: Mapping[str, float]


def prepare(bundle: OpenBundle, case: Case, image: MetaTensor, *, input_sha256: str = "") -> Prepared:
    """Checks the image against what the bundle was made for, and runs its preprocessing.

    `LoadImaged` runs as the bundle configured it, but takes the volume from memory.

    Args:
        bundle: the open bundle.
        case: what the image was read from.
        image: as read, `(1, X, Y, Z)` with its affine.
        input_sha256: of the input's content, for the provenance.

    Raises:
        InputError: the preprocessing cannot use this image.
        BundleError: it does not make of it what the network takes.
    """
    started = time.perf_counter()
    if image.ndim != 4 or image.shape[0] != 1:
        raise GeometryError(f"expected one 3-D volume of one channel, got shape {tuple(image.shape)}")
    flags = (*flags_of(image), *bundle.flags)
    if bundle.input_check is not None:
        flags += tuple(bundle.input_check(image).flags)
    with _medgen_errors_as_they_were():
        load = bundle.preprocessing.transforms[0]
        item = load({bundle.image_key: case.files[0]}, reader=_FromMemory(image))
        item = bundle.preprocessing(item, start=1)
    _require_channels(item[bundle.image_key], bundle.metadata)
    return Prepared(case, image, item, input_sha256, flags, {"prepare": time.perf_counter() - started})


def compute(bundle: OpenBundle, prepared: Prepared) -> Predicted:
    """Runs the network on one case; the one step that uses the device.

    Raises:
        DeviceError: the device's memory does not suffice.
        BundleError: the network's output is not one tensor.
    """
    started = time.perf_counter()
    batch = list_data_collate([prepared.item])
    images = batch[bundle.image_key]
    windows = isinstance(
        bundle.inferer, WindowInferer | LatentScorer | AnoGanScorer
    )  # it moves window by window, and sees to precision itself
    inputs = images if windows else images.to(bundle.device)
    amp = bundle.amp and not windows and bundle.device.type == "cuda"
    try:
        with torch.no_grad(), torch.autocast(bundle.device.type, enabled=amp), kept_memory(bundle.device):
            pred = bundle.inferer(inputs, bundle.network)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"expected a window of {type(bundle.inferer).__name__} to fit {bundle.device}, but its memory ran out; "
            "free the device, or take --device cpu"
        ) from error
    if not isinstance(pred, torch.Tensor):
        raise BundleError(f"expected one tensor from the network of {bundle.name}, got a {type(pred).__name__}")
    if not isinstance(pred, MetaTensor):  # without its affine, Invertd would leave it where it is and say nothing
        pred = MetaTensor(pred, meta=images.meta, applied_operations=images.applied_operations)
        pred.is_batch = True
    batch[PRED] = pred.cpu().float()
    item = decollate_batch(batch)[0]
    prepared.item.clear()
    seconds = {**prepared.seconds, "compute": time.perf_counter() - started}
    return Predicted(prepared, item, tuple(getattr(bundle.inferer, "flags", ())), seconds)


def finish(bundle: OpenBundle, predicted: Predicted) -> Result:
    """Runs the bundle's postprocessing but for its saving, and checks that the result lies on the input's own grid.

    A bundle from elsewhere that never goes back to the input's grid gets its result on the network's grid, beside the
    input as the network saw it, flagged `own-grid`.

    Raises:
        GeometryError: the result lies on neither grid; or not on the input's, for a bundle that came with medgen.
        IntensityError: the result holds NaN or infinity, or is a label map of other than whole numbers.
        OutputError: the result has several channels.
    """
    started = time.perf_counter()
    prepared = predicted.prepared
    seen = predicted.item[bundle.image_key]
    with _medgen_errors_as_they_were():
        item = bundle.postprocessing(predicted.item)
    pred = item[PRED]
    image = _voxels(pred, bundle)
    require_sound(image, bundle.name, bundle.output)
    given = Laid(_array(prepared.image), _grid_of(prepared.image))
    laid = under(_grid_of(pred), given, Laid(_array(seen), _grid_of(seen)), name=bundle.name, own=bundle.own)
    flags = prepared.flags + predicted.flags + (() if laid is given else (OWN_GRID_FLAG,))
    for key in ("brain", RETINA_KEY):
        flags += flags_of(item[key]) if isinstance(item.get(key), MetaTensor) else ()
    if bundle.reference is not None:
        flags += bundle.reference.flags_of(_grid_of(prepared.image).spacing_mm)
    findings = _findings(bundle, item, flags)
    flags += _flags_of_findings(bundle, findings)
    return Result(
        case=prepared.case,
        kind=bundle.output,
        image=image,
        source=laid.voxels,
        grid=laid.grid,
        provenance=bundle.provenance(prepared.input_sha256),
        flags=tuple(dict.fromkeys(flags)),
        seconds={**predicted.seconds, "finish": time.perf_counter() - started},
        findings=findings,
    )


def _findings(bundle: OpenBundle, item: Mapping[Any, Any], flags: Sequence[str]) -> Findings | None:
    """What the postprocessing scored, and what it means; None where it scored nothing."""
    if not {REGIONS_KEY, SCAN_KEY} <= item.keys():
        return None
    regions, scan = item[REGIONS_KEY], float(item[SCAN_KEY])
    if bundle.reference is None:
        known = None if FOREIGN & set(flags) else scan
        return Findings(known, tuple(regions), None, "none: there is no healthy reference of these settings")
    return bundle.reference.judge(regions, scan, flags)


def _flags_of_findings(bundle: OpenBundle, findings: Findings | None) -> tuple[str, ...]:
    if findings is None:
        return ()
    if findings.score is None:
        return (OUTSIDE_FLAG,)
    above = isinstance(bundle.reference, NormalScans) and bundle.reference.is_above(findings)
    return (ABOVE_FLAG,) if above else ()


def _require_channels(image: torch.Tensor, metadata: Metadata) -> None:
    """Refuses what the network would refuse in words that only its author understands."""
    channels = metadata.input_channels
    if image.ndim != 4 or channels not in {None, image.shape[0]}:
        wanted = "channels" if channels is None else f"{channels} channel{'s' * (channels != 1)}"
        raise BundleError(
            f"expected {wanted} and 3 dimensions for the network of {metadata.bundle}, but its preprocessing makes "
            f"shape {tuple(image.shape)} of one volume; medgen reads no file of several images"
        )


class _FromMemory(ImageReader):  # type: ignore[misc]  # MONAI is untyped
    """Hands a volume that is already in memory to a `LoadImage`, with the metadata that MONAI's readers give."""

    def __init__(self, image: MetaTensor) -> None:
        super().__init__()
        self.image = image

    def verify_suffix(self, filename: object) -> bool:
        return True

    def read(self, data: object, **kwargs: Any) -> MetaTensor:  # noqa: ANN401 - MONAI's interface
        return self.image

    def get_data(self, img: MetaTensor) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Returns voxels `(X, Y, Z)`; `original_channel_dim` NaN is MONAI's word for none."""
        affine = _grid_of(img).affine
        shape = np.asarray(img.shape[1:])
        meta = {"affine": affine, "original_affine": affine.copy(), "spatial_shape": shape, "space": "RAS"}
        # A copy: some transforms write into what they are given, and the image as read is shown beside the result.
        return _array(img).copy(), {**meta, "original_channel_dim": math.nan}


def _voxels(pred: object, bundle: OpenBundle) -> npt.NDArray[np.float32]:
    """Returns the one channel of what postprocessing left, `(X, Y, Z)` float32."""
    if not isinstance(pred, MetaTensor):
        raise GeometryError(
            f"expected a MetaTensor with its affine after the postprocessing of {bundle.name}, "
            f"got a {type(pred).__name__}"
        )
    require_one_channel(pred.shape, bundle.name)
    return _array(pred)


def _array(image: MetaTensor) -> npt.NDArray[np.float32]:
    """Returns the first channel as an array `(X, Y, Z)`; shares memory where it can."""
    return np.asarray(image.detach().cpu().as_tensor()[0].numpy(), dtype=np.float32)


def _grid_of(image: MetaTensor) -> Grid:
    x, y, z = (int(n) for n in image.shape[1:])
    return Grid((x, y, z), image.affine.cpu().numpy().astype(np.float64))


@contextmanager
def _medgen_errors_as_they_were() -> Iterator[None]:
    """Lets an error that medgen raised on purpose out of the RuntimeErrors in which MONAI wraps it."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, MedgenError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from error
        raise
