"""The last transform of a bundle's postprocessing, for plain `python -m monai.bundle run`."""

import hashlib
import logging
from collections.abc import Hashable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from medgen.case import Case, Kind, OutputKind, Result
from medgen.errors import OutputError
from medgen.geometry import Grid
from medgen.provenance import Provenance
from medgen.read.oct import PICTURE_EXTENSIONS
from medgen.read.volume import SPACING_MARK, VOLUME_MARK
from medgen.write.nifti import write_nifti
from medgen.write.result import output_stem

_KINDS: dict[Kind, tuple[str, ...]] = {"nifti": (".nii.gz", ".nii"), "picture": PICTURE_EXTENSIONS}

_log = logging.getLogger(__name__)


class SaveResultd(SaveImaged):  # type: ignore[misc]  # MONAI is untyped
    """Writes a prediction as NIfTI on its input's grid, with the names and the rounding of `medgen run`.

    It is a `SaveImaged`, so that whoever loads a bundle and saves by itself (MONAI Label, `medgen run`) knows to leave
    it out. DICOM and pictures become NIfTI too: `medgen run` writes DICOM.

    Items say by `stem`, as those of `medgen.read.discover.datalist` do, what they are called; without it a NIfTI file
    or a picture is called by its path below `dataset_dir`, and a DICOM series by a hash of that path, which may hold a
    name.

    Args:
        keys: of the predictions, MetaTensors `(1, X, Y, Z)` back on the input's grid (after `Invertd`).
        output_dir: where to.
        suffix: BIDS suffix of the result, such as `"T2w"`.
        unit: `"HU"` or `"arbitrary"`.
        process: see `OutputKind`.
        dataset_dir: the input folder, for items without `stem`.
        allow_missing_keys: leave out items that lack a key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str,
        suffix: str,
        unit: str = "arbitrary",
        dataset_dir: str = "",
        allow_missing_keys: bool = False,
        process: str = "synthetic",
    ) -> None:
        super().__init__(keys, output_dir=output_dir, allow_missing_keys=allow_missing_keys, print_log=False)
        self.output_dir = Path(output_dir)
        self.kind = OutputKind(suffix, "", f"{process.capitalize()} {suffix}", unit, process)
        self.dataset_dir = dataset_dir

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Writes the item's predictions and returns it; `meta["saved_to"]` says where they are.

        Raises:
            OutputError: a prediction cannot be written.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            item[key].meta["saved_to"] = str(self._save(item[key], str(item.get("stem", ""))))
        return item

    def _save(self, pred: MetaTensor, stem: str) -> Path:
        if not isinstance(pred, MetaTensor) or pred.ndim != 4 or pred.shape[0] != 1:
            raise OutputError(
                f"expected a MetaTensor (1, X, Y, Z) to save, got {type(pred).__name__} {tuple(pred.shape)}"
            )
        case = _case(str(pred.meta.get("filename_or_obj", "")), stem, self.dataset_dir)
        image = pred.detach().cpu().as_tensor()[0].to(torch.float32).numpy()
        grid = Grid((image.shape[0], image.shape[1], image.shape[2]), pred.affine.cpu().numpy().astype(np.float64))
        target = output_stem(case.stem, self.kind)
        path = self.output_dir / target.with_name(target.name + (case.extension if case.kind == "nifti" else ".nii.gz"))
        write_nifti(Result(case, self.kind, image, image, grid, Provenance("", "", "")), path)
        _log.info("wrote %s", path.name)
        return path


def _case(source: str, stem: str, dataset_dir: str) -> Case:
    """The case that a file, as MONAI's metadata names it, belongs to."""
    path = Path(source.partition(VOLUME_MARK)[0].partition(SPACING_MARK)[0])
    known = ((e, kind) for kind, ends in _KINDS.items() for e in ends if path.name.lower().endswith(e))
    extension, kind = next(known, (".dcm", "dicom"))
    relative = PurePosixPath(path.name)
    if dataset_dir and path.is_relative_to(dataset_dir):
        relative = PurePosixPath(path.relative_to(dataset_dir).as_posix())
    if not stem and kind != "dicom":
        stem = str(relative.with_name(relative.name[: -len(extension)]))
    elif not stem:
        stem = f"dicom-{hashlib.sha256(source.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"
    return Case(stem, kind, (path,), PurePosixPath(stem), relative, extension)
