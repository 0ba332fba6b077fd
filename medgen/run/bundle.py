"""A bundle opened as parts that can be called: preprocessing, network, inferer, postprocessing."""

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any

import monai
import torch
from monai.bundle import ConfigParser
from monai.transforms import AsDiscreted, Compose, Invertd, LoadImaged, SaveImage, SaveImaged
from torch import nn

from medgen.case import OutputKind
from medgen.errors import BundleError, MedgenError, UntrustedError, root_cause
from medgen.infer.from_monai import window_inferer_like
from medgen.infer.reference import UNCALIBRATED_FLAG, HealthyReference, require_reference_of
from medgen.prepare.resample import hasten
from medgen.provenance import Provenance, file_sha256
from medgen.run.catalog import BundleFolder, find_bundle
from medgen.run.changes import apply_change
from medgen.run.choice import Choice
from medgen.run.device import pick_device
from medgen.run.metadata import Metadata, read_metadata
from medgen.run.trust_code import CONFIG_SUFFIXES, list_code, load_config
from medgen.run.weights import check_weights, find_weights, load_weights, weights_problem

REQUIRED_IDS = ("preprocessing", "network_def", "inferer", "postprocessing")
NEAREST_LABELS_FLAG = "nearest-labels"
# What of an inferer changes the result, and so belongs to a case's provenance, where the inferer has it.
_SETTINGS_OF_INFERER = ("roi_size", "adapt", "overlap", "mode", "precision", "padding", "padding_mode", "sigma_scale")
# Ids of a scoring bundle's config that change a score; a healthy reference is of one choice of them.
_SETTINGS_OF_SCORES = (
    *("contrast", "evidence", "evidence_smoothing", "erode_mm", "brain_shape"),
    *("finder", "stride", "feature_weight", "trend", "smoothing_columns"),
)
_BY_SLICE = ("SliceInferer", "AnoGanScorer")  # inferers that show a volume to a network of two dimensions
_code_folder: list[str] = []  # the one bundle folder with `scripts/` that is on sys.path now


@dataclass(frozen=True, eq=False)
class OpenBundle:
    """A bundle with its weights loaded, ready for `medgen.run.predict`.

    Attributes:
        name: of the bundle.
        own: it comes with medgen.
        metadata: what it says of itself.
        device: where the network lies.
        network: with weights, in evaluation mode.
        inferer: called with (inputs `(B, C, X, Y, Z)`, network).
        preprocessing: dictionary transforms, `LoadImaged` first.
        postprocessing: dictionary transforms without the ones that save.
        image_key: of the image in the dictionary that the transforms pass on.
        weights_sha256: of the weights that were loaded.
        settings: whatever changes the output besides weights and input; JSON types.
        amp: its evaluator asks for autocast on CUDA, which holds where the inferer does not see to precision itself.
        input_check: called with the image as read; returns what it noticed under `.flags`; None where none is declared.
        flags: of every result.
        reference: what scores of healthy tissue are, where the bundle scores and declares one.
        scoring: how it scores, in words: `score` and `contrast`; a reference is of one way.
        computed_by: what computes the network, where that was chosen; see `medgen.run.backend.with_backend`.
    """

    name: str
    own: bool
    metadata: Metadata
    device: torch.device
    network: nn.Module
    inferer: Callable[[torch.Tensor, nn.Module], torch.Tensor]
    preprocessing: Compose
    postprocessing: Compose
    image_key: str
    weights_sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    amp: bool = False
    input_check: Callable[[Any], Any] | None = None
    flags: tuple[str, ...] = ()
    reference: HealthyReference | None = None
    scoring: Mapping[str, str] = field(default_factory=dict)
    computed_by: Choice | None = None

    @property
    def version(self) -> str:
        """Version of the bundle, from its metadata."""
        return self.metadata.version

    @property
    def output(self) -> OutputKind:
        """What the bundle makes."""
        return self.metadata.output_kind()

    def provenance(self, input_sha256: str = "") -> Provenance:
        """Returns who makes a result from the input with this SHA-256."""
        by = {"computed_by": self.computed_by.to_json()} if self.computed_by else {}
        return Provenance(self.name, self.version, self.weights_sha256, input_sha256, {**self.settings, **by})


def open_bundle(
    name_or_path: str | Path,
    *,
    trust: bool = False,
    device: str = "auto",
    changes: Sequence[str] = (),
    reference: bool = True,
) -> OpenBundle:
    """Opens an installed bundle by name, or any bundle that meets the MONAI specification by its folder.

    Args:
        name_or_path: see `medgen.run.catalog.find_bundle`.
        trust: run the code of a bundle that did not come with medgen.
        device: see `medgen.run.device.pick_device`.
        changes: `key=value` of ids in the inference config, as `apply_change` takes them; they are among the settings.
        reference: with the healthy reference that it declares, if it does; without, scores have no p-values.

    Raises:
        BundleError: there is no such bundle, or parts of it are missing: all of them are named at once.
        UntrustedError: it is code from elsewhere and `trust` is not given; its `items` are that code.
        DeviceError: the device is not there.
    """
    entry = find_bundle(name_or_path)
    metadata = read_metadata(entry.folder)
    config = require_runnable(entry, metadata, trust=trust)
    chosen = pick_device(device)
    parser = _parser(entry, config, chosen)
    for change in changes:
        apply_change(parser, change)
    weights = find_weights(entry.folder, _load_path(parser, entry))
    sha256 = check_weights(entry.folder, weights, metadata.weights_sha256(), required=entry.own)
    parts = {name: _part(parser, name, entry) for name in REQUIRED_IDS}
    _check_parts(parts, entry)
    inferer = window_inferer_like(parts["inferer"]) or parts["inferer"]  # the same windows and weights, faster
    preprocessing = hasten(parts["preprocessing"].flatten())
    postprocessing = hasten(_without_saving(parts["postprocessing"]))
    mended = metadata.output_kind().unit == "label" and _keep_labels_whole(postprocessing)
    scoring = _scoring(parser)
    healthy = _reference(parser, entry, sha256) if reference else None
    return OpenBundle(
        name=entry.name,
        own=entry.own,
        metadata=metadata,
        device=chosen,
        network=load_weights(parts["network_def"], weights).to(chosen).eval(),
        inferer=inferer,
        preprocessing=preprocessing,
        postprocessing=postprocessing,
        image_key=preprocessing.transforms[0].keys[0],
        weights_sha256=sha256,
        settings={
            "config_sha256": file_sha256(config),
            **_settings(getattr(inferer, "windows", inferer)),
            **({"set": list(changes)} if changes else {}),
            **({"reference_sha256": healthy.sha256} if healthy else {}),
            **_aids(parser, entry),
        },
        amp="evaluator::amp" in parser and bool(_part(parser, "evaluator::amp", entry)),
        input_check=_part(parser, "input_check", entry) if "input_check" in parser else None,
        flags=(*((NEAREST_LABELS_FLAG,) if mended else ()), *((UNCALIBRATED_FLAG,) if scoring and not healthy else ())),
        reference=healthy,
        scoring=scoring,
    )


def require_runnable(entry: BundleFolder, metadata: Metadata, *, trust: bool) -> Path:
    """Returns the inference config once nothing that a run needs is missing; runs no code of it.

    Raises:
        BundleError: names all that is missing.
        UntrustedError: it is code from elsewhere and `trust` is not given; its `items` are that code.
    """
    paths = [entry.folder / "configs" / f"inference{suffix}" for suffix in CONFIG_SUFFIXES]
    config = next((path for path in paths if path.is_file()), None)
    ids = load_config(config) if config else {}
    if config is None:
        missing = ["configs/inference.json, .yaml or .yml"]
    else:
        missing = [f"{name} in configs/{config.name}" for name in REQUIRED_IDS if name not in ids]
    missing += metadata.data_problems(by_slice=any(_names(ids.get("inferer"), kind) for kind in _BY_SLICE))
    if no_weights := weights_problem(entry.folder):
        missing.append(no_weights)
    if missing or config is None:
        raise BundleError(f"the bundle {entry.name} cannot be run on images; it lacks: {'; '.join(missing)}")
    if not (entry.own or trust):
        raise UntrustedError(
            f"the bundle {entry.name} did not come with medgen, and running it runs its code; "
            "read what it imports and evaluates, then say --trust",
            list_code(entry.folder, config),
        )
    return config


def _parser(entry: BundleFolder, config: Path, device: torch.device) -> ConfigParser:
    """Returns the config with root, device and output folder set for this run, and the bundle's own code importable."""
    _make_scripts_importable(entry.folder)
    parser = ConfigParser()
    with _without_notices():
        parser.read_config(config)
        parser.read_meta(entry.folder / "configs" / "metadata.json")
    _forget_readers(parser.config)
    parser["bundle_root"] = str(entry.folder)
    parser["device"] = device
    # medgen writes the results itself; whatever else a transform insists on writing goes nowhere near the input.
    parser["output_dir"] = str(Path(tempfile.gettempdir()) / "medgen-unused")
    return parser


def _reference(parser: ConfigParser, entry: BundleFolder, weights_sha256: str) -> HealthyReference | None:
    """The healthy reference that a bundle declares, if it is one of these settings; of other weights it is refused."""
    if parser.get("reference") is None:
        return None
    found = _part(parser, "reference", entry)
    if not isinstance(found, HealthyReference):
        raise BundleError(f"expected reference of {entry.name} to be a HealthyReference, got a {type(found).__name__}")
    require_reference_of(found, weights_sha256)
    return found if {"score": found.score, "contrast": found.contrast} == _scoring(parser) else None


def _scoring(parser: ConfigParser) -> dict[str, str]:
    """How a bundle scores, in words: its contrast, and whatever changes a score; nothing where it has no reference."""
    if "reference" not in parser:
        return {}
    settings = {name: parser.get_parsed_content(name) for name in _SETTINGS_OF_SCORES if name in parser}
    if "brain_shape" in settings:  # by content: the same file lies elsewhere on another machine
        shape = Path(str(settings["brain_shape"]))
        settings["brain_shape"] = file_sha256(shape)[:12] if shape.is_file() else "none"
    plain = {n: f"{v:g}" if isinstance(v, int | float) else str(v) for n, v in settings.items() if n != "contrast"}
    score = " ".join(f"{name}={value}" for name, value in plain.items())
    return {"score": score, "contrast": str(settings.get("contrast", ""))}


def _aids(parser: ConfigParser, entry: BundleFolder) -> dict[str, str]:
    """SHA-256 of the small files beside the weights that a result rests on: what inputs are like, where brains are."""
    files = [*(entry.folder / "models").glob("input_reference*.json")]
    if shape := str(parser.get_parsed_content("brain_shape") if "brain_shape" in parser else ""):
        files.append(Path(shape))
    return {f"{file.name}_sha256": file_sha256(file) for file in sorted(files) if file.is_file()}


def _make_scripts_importable(folder: Path) -> None:
    """Puts a bundle with `scripts/` on the path, alone: two bundles' `scripts` in one process would be one package.

    Classes already imported from the bundle opened before go on working.
    """
    if not (folder / "scripts").is_dir():
        return
    while _code_folder:
        sys.path.remove(_code_folder.pop())
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    _code_folder.append(str(folder))


def _part(parser: ConfigParser, name: str, entry: BundleFolder) -> Any:  # noqa: ANN401 - a config holds anything
    try:
        with _without_notices():
            return parser.get_parsed_content(name)
    except MedgenError:
        raise
    except Exception as error:  # the config runs arbitrary code
        cause = root_cause(error)
        reason = f"{type(cause).__name__}: {shorten(str(cause), 200, placeholder='…')}{_asked_for(parser, cause)}"
        raise BundleError(f"{name} of the bundle {entry.name} cannot be built: {reason}") from error


def _asked_for(parser: ConfigParser, cause: BaseException) -> str:
    """Says what the metadata wants installed, as far as that may be what is missing here; "" where nothing is known."""
    described = parser.get("_meta_") or {}
    said = ""
    made_for = described.get("monai_version")
    if made_for and made_for != monai.__version__:
        said += f"; it was made for MONAI {made_for}, this is {monai.__version__}"
    if isinstance(cause, ImportError) or "No module named" in str(cause):
        keys = ("optional_packages_version", "required_packages_version")
        asked = {name: version for key in keys for name, version in described.get(key, {}).items()}
        said += f"; it asks for {', '.join(f'{name} {version}' for name, version in asked.items())}" if asked else ""
    if isinstance(cause, UnpicklingError):
        said += "; it unpickles a file of its own: if you trust that too, set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"
    return said


def _names(part: object, class_name: str) -> bool:
    """Says whether a part of a config, as read, is to become an object of this class, with or without its module."""
    return isinstance(part, dict) and str(part.get("_target_", "")).rpartition(".")[2] == class_name


def _forget_readers(config: Any) -> None:  # noqa: ANN401 - JSON
    """Takes from every `LoadImaged` the reader that it names: volumes come from memory, and ITK need not be there."""
    if _names(config, "LoadImaged"):
        config.pop("reader", None)
    for part in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        _forget_readers(part)


def _load_path(parser: ConfigParser, entry: BundleFolder) -> str:
    """Returns where the config's own `CheckpointLoader` finds the weights, "" where there is none."""
    for name, part in parser.get().items():
        numbered = {f"{name}::{index}": item for index, item in enumerate(part)} if isinstance(part, list) else {}
        for item_id, item in (numbered or {name: part}).items():
            if _names(item, "CheckpointLoader") and "load_path" in item:
                return str(_part(parser, f"{item_id}::load_path", entry))
    return ""


@contextmanager
def _without_notices() -> Iterator[None]:
    """Keeps from the user what only the bundle's author can change, or nobody.

    MONAI tells for every `LoadImaged` that an optional DICOM codec is absent, while medgen reads by itself; and it
    tells of names and defaults that have become old.
    """
    logger = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader", category=UserWarning)
            warnings.filterwarnings("ignore", message="Detected deprecated name", category=UserWarning)
            warnings.filterwarnings("ignore", module=r"monai\.", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _check_parts(parts: Mapping[str, Any], entry: BundleFolder) -> None:
    """Refuses parts of another kind than a run can use, all at once."""
    wrong = []
    preprocessing = parts["preprocessing"]
    steps = preprocessing.flatten().transforms if isinstance(preprocessing, Compose) else ()
    if not steps or not isinstance(steps[0], LoadImaged):
        wrong.append("preprocessing as a Compose that begins with LoadImaged")
    elif len(steps[0].keys) != 1:
        wrong.append(f"one image to load (it loads {', '.join(map(str, steps[0].keys))})")
    if not isinstance(parts["postprocessing"], Compose):
        wrong.append("postprocessing as a Compose")
    if not isinstance(parts["network_def"], nn.Module):
        wrong.append("network_def as a torch module")
    if not callable(parts["inferer"]):
        wrong.append("inferer as a callable")
    if wrong:
        raise BundleError(f"the bundle {entry.name} cannot be run on images; expected {'; '.join(wrong)}")


def _without_saving(postprocessing: Compose) -> Compose:
    """Returns the same transforms but those that save: the writers of medgen do that."""
    flat = postprocessing.flatten()
    flat.transforms = tuple(t for t in flat.transforms if not isinstance(t, SaveImaged | SaveImage))
    return flat


def _keep_labels_whole(postprocessing: Compose) -> bool:
    """Lets labels go back to the input's grid unblended; says whether that is another way than the bundle's own.

    Between the labels 0 and 2, interpolation puts a rim of 1, which is another organ.
    """
    discrete, mended = False, False
    for step in postprocessing.transforms:
        discrete = discrete or isinstance(step, AsDiscreted)
        if discrete and isinstance(step, Invertd) and not all(step.nearest_interp):
            step.nearest_interp = (True,) * len(step.keys)
            mended = True
    return mended


def _settings(inferer: object) -> dict[str, Any]:
    found: dict[str, Any] = {"inferer": type(inferer).__name__}
    for name in _SETTINGS_OF_INFERER:
        value = getattr(inferer, name, None)
        if isinstance(value, str | int | float):
            found[name] = str(value) if isinstance(value, str) else value  # MONAI's modes are enumerations
        elif isinstance(value, tuple | list):
            found[name] = [part if isinstance(part, int | float) else str(part) for part in value]
    return found
