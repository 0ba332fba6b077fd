"""Everything that is written for one result, and what it is called."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from medgen.case import OutputKind, Result
from medgen.provenance import files_sha256
from medgen.read.ophthalmic import EYE_MODALITIES
from medgen.write.bscans import write_bscans
from medgen.write.dicom import write_dicom_series
from medgen.write.nifti import write_nifti
from medgen.write.overlay import write_overlay
from medgen.write.preview import write_preview
from medgen.write.regions import write_regions
from medgen.write.sidecar import write_sidecar

Formats = Literal["same", "nifti", "dicom", "both"]
FORMATS: tuple[Formats, ...] = get_args(Formats)

# BIDS suffixes of images, which a derivative replaces by its own.
_BIDS_SUFFIXES = """
    T1w T2w PDw FLAIR T2starw T2star inplaneT1 inplaneT2 PDT2 angio T1map T2map T1rho UNIT1 T1 T2 PD
    bold cbv sbref dwi asl m0scan epi magnitude magnitude1 magnitude2 pet CT ct
""".split()  # noqa: SIM905  # so many words read better without quotes
_SUFFIXED = re.compile(rf"(?P<entities>.+)_(?P<suffix>{'|'.join(_BIDS_SUFFIXES)})")
_LAST_DESC = re.compile(r"(.*_desc-)([0-9a-zA-Z]+)(?=_|$)(?!.*_desc-)(.*)")


@dataclass(frozen=True)
class Written:
    """What is on the disk for a result, relative to the output folder.

    Attributes:
        output: the main output: a file, or the folder of a DICOM series.
        files: every file, sidecar and preview included.
        sha256: of the main output; for a folder the hash of its files' hashes.
    """

    output: PurePosixPath
    files: tuple[PurePosixPath, ...]
    sha256: str


def output_stem(stem: PurePosixPath, kind: OutputKind) -> PurePosixPath:
    """Names a result after its input, as a BIDS derivative; different stems never get the same name.

    Args:
        stem: the input's path without extension.
        kind: of the result.

    Example:
        >>> t2 = OutputKind("T2w", "MR", "Synthetic T2-weighted")
        >>> output_stem(PurePosixPath("sub-01/anat/sub-01_T1w"), t2).as_posix()
        'sub-01/anat/sub-01_desc-synthFromT1w_T2w'
        >>> output_stem(PurePosixPath("sub-01_desc-brain_T1w"), t2).as_posix()
        'sub-01_desc-brainSynthFromT1w_T2w'
        >>> output_stem(PurePosixPath("scan 7"), OutputKind("CT", "CT", "Denoised CT", process="denoised")).as_posix()
        'scan 7_desc-denoised_CT'
    """
    known = _SUFFIXED.fullmatch(stem.name)
    done, suffix = "synth" if kind.synthetic else kind.process, kind.suffix
    if known is None:
        return stem.with_name(f"{stem.name}_desc-{done}_{suffix}")
    entities, made = known["entities"], f"{done}From{known['suffix']}"
    described = _LAST_DESC.fullmatch(entities)
    if described is None:
        return stem.with_name(f"{entities}_desc-{made}_{suffix}")
    before, value, after = described.groups()
    return stem.with_name(f"{before}{value}{made[:1].upper()}{made[1:]}{after}_{suffix}")


def write_result(result: Result, output: Path, formats: Formats = "same", *, preview: bool = True) -> Written:
    """Writes a result below the output folder: data first, then the picture, then the sidecar that vouches for them.

    A case that was written before is replaced file by file; each file is whole or absent at any instant.

    Args:
        result: what to write.
        output: the output folder; the result's path in it mirrors the input's.
        formats: `"same"` as the input (NIfTI, if that is a picture), or NIfTI, a DICOM series, or both.
        preview: with a PNG.

    Raises:
        OutputError: it cannot be written.
    """
    stem = output_stem(result.case.stem, result.kind)
    own = "dicom" if result.case.kind == "dicom" else "nifti"
    kinds = [own] if formats == "same" else ["nifti", "dicom"] if formats == "both" else [formats]
    outputs: dict[PurePosixPath, str] = {}
    files: list[PurePosixPath] = []
    for kind in sorted(kinds, key=lambda kind: kind != own):  # the input's own format, of a picture NIfTI, comes first
        target, written = _write_nifti(result, output, stem) if kind == "nifti" else _write_dicom(result, output, stem)
        outputs[target] = files_sha256(output / path for path in written)
        files += written
    if result.findings is not None:
        files.append(_sibling(stem, "_regions.csv"))
        write_regions(result.findings, output / files[-1])
    if preview:
        files.append(_sibling(stem, ".png"))
        _picture_writer(result.kind)(result, output / files[-1])
    files.append(_sibling(stem, ".json"))
    write_sidecar(result, output / files[-1], {path.name: sha256 for path, sha256 in outputs.items()})
    main = next(iter(outputs))
    return Written(main, tuple(files), outputs[main])


def _picture_writer(kind: OutputKind) -> Callable[[Result, Path], None]:
    if kind.unit != "score":
        return write_preview
    return write_bscans if kind.modality in EYE_MODALITIES else write_overlay


def _write_nifti(result: Result, output: Path, stem: PurePosixPath) -> tuple[PurePosixPath, list[PurePosixPath]]:
    extension = result.case.extension if result.case.kind == "nifti" else ".nii.gz"
    target = _sibling(stem, ".nii" if extension.lower() == ".nii" else ".nii.gz")
    write_nifti(result, output / target)
    return target, [target]


def _write_dicom(result: Result, output: Path, stem: PurePosixPath) -> tuple[PurePosixPath, list[PurePosixPath]]:
    target = _sibling(stem, "_dicom")
    if result.kind.unit == "score":
        from medgen.write.parametric import write_parametric_map  # noqa: PLC0415 - a third of a second of import

        write_parametric_map(result, output / target)
    else:
        write_dicom_series(result, output / target)
    return target, [target / path.name for path in sorted((output / target).iterdir())]


def _sibling(stem: PurePosixPath, ending: str) -> PurePosixPath:
    return stem.with_name(stem.name + ending)
