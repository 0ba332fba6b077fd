"""A bundle as an infer task of MONAI Label: the way of `medgen run`, its result as one file and a few facts."""

import logging
import math
import re
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from medgen.case import Case, Findings, Result
from medgen.errors import BundleError, MedgenError, NoInputError
from medgen.read.discover import find_cases
from medgen.run.bundle import OpenBundle
from medgen.run.catalog import BundleFolder
from medgen.run.job import open_computed, predict_case
from medgen.run.metadata import read_metadata
from medgen.run.request import RunRequest
from medgen.run.select import Filters, SeriesRule, select_cases
from medgen.serve.endpoint import require_spelled
from medgen.serve.train import trained
from medgen.write.served import DTYPES, EXTENSIONS, require_known, write_served

_log = logging.getLogger(__name__)

_OWN = "bundle"  # the weights that it came with
_UNUSABLE = 422  # HTTP: understood, and cannot be done with this
_OURS = 500
_CONTRAST = re.compile(r"input_series_(\w+)")

_Key = tuple[str, str, str]


class BundleInfer(InferTask):  # type: ignore[misc]  # MONAI Label is untyped
    """Runs a bundle on one image.

    Args:
        bundle: which.
        app_dir: where the train task of the same bundle leaves what it made.
        computer: one thread in which all bundles compute: two networks at once would share the cores and double the
            memory, and each of the server's threads would get threads of its own from torch.
        trust: run its code although it did not come with medgen.
    """

    def __init__(self, bundle: BundleFolder, app_dir: Path, computer: Executor, *, trust: bool = False) -> None:
        metadata = read_metadata(bundle.folder)
        about = str(metadata.fields.get("description", bundle.name))
        super().__init__(InferType.OTHERS, [], 3, about)
        self._bundle, self._metadata, self._app_dir, self._trust = bundle, metadata, app_dir, trust
        others = [found[1] for name in metadata.fields if (found := _CONTRAST.fullmatch(name))]
        self._usual = str(metadata.fields.get("input_contrast", ""))
        self._contrasts = [self._usual, *others] if others else []
        self._opened: dict[_Key, OpenBundle] = {}
        self._computer = computer

    def is_valid(self) -> bool:
        """Says that it can be run."""
        return True

    def config(self) -> dict[str, Any]:
        """Returns what a client may choose; the first of several is what it gets unasked."""
        return {
            "device": ["auto", "cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))],
            "result_extension": list(EXTENSIONS),
            "result_dtype": list(DTYPES),
            "allow_irregular": False,
            "weights": [_OWN, *trained(self._app_dir, self._bundle.name)],
            **({"contrast": self._contrasts} if self._contrasts else {}),
        }

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Returns the path of the result, which whoever asked removes, and what else there is to say.

        Args:
            request: `image`: a file or folder; what `config` names; `result_compress` of `.nrrd` and `.mha`.
                `allow_irregular`: resample series with gaps or a tilt instead of refusing them.

        Raises:
            HTTPException: 422 with the reason, if this image cannot be used, or not written as asked for; 500, if the
                bundle is at fault.
        """
        began = time.perf_counter()
        try:
            choices = {name: value for name, value in self.config().items() if isinstance(value, list)}
            require_spelled(request, (*choices, "allow_irregular", "result_compress"))
            asked = {name: first(request.get(name) or value) for name, value in choices.items()}
            require_known(asked["result_extension"], asked["result_dtype"])  # before the work, not after it
            irregular, compress = _said(request, "allow_irregular", False), _said(request, "result_compress", True)
            case = self._case(Path(request["image"]), asked, allow_irregular=irregular)
            result = self._computer.submit(self._compute, case, asked, allow_irregular=irregular).result()
            file = _write(result, self._app_dir / "tmp", asked, compress=compress)
        except BundleError as error:
            raise HTTPException(_OURS, str(error)) from error
        except MedgenError as error:
            raise HTTPException(_UNUSABLE, str(error)) from error
        seconds = time.perf_counter() - began
        _log.info("%s: one image in %.1f s", self._bundle.name, seconds)
        return str(file), _params(result, seconds)

    def _case(self, image: Path, asked: Mapping[str, str], *, allow_irregular: bool) -> Case:
        """The one volume to work on; of several the one that the bundle prefers."""
        modality = self._metadata.modality_in
        found = find_cases(image, salt=b"serve", allow_irregular=allow_irregular, modality=modality)
        rule = SeriesRule.from_metadata(self._metadata.fields, _changes(asked, self._usual))
        chosen = select_cases(found, rule, Filters())
        usable = [case for case in chosen if not case.excluded and not case.refused]
        if len(usable) == 1:
            return usable[0]
        reasons = sorted({case.refused or case.excluded for case in chosen} - {""})
        raise NoInputError(f"expected one volume, got {len(usable)}{': ' if reasons else ''}{'; '.join(reasons)}")

    def _compute(self, case: Case, asked: Mapping[str, str], *, allow_irregular: bool) -> Result:
        return predict_case(self._open(asked), case, allow_irregular=allow_irregular)

    def _open(self, asked: Mapping[str, str]) -> OpenBundle:
        key = (asked["device"], asked["weights"], asked.get("contrast", ""))
        if key not in self._opened:
            others = trained(self._app_dir, self._bundle.name)
            if asked["weights"] not in {_OWN, *others}:
                raise NoInputError(f"expected weights of {', '.join((_OWN, *others))}, got {asked['weights']!r}")
            if self._contrasts and asked["contrast"] not in self._contrasts:  # a setting is code: none but these
                raise NoInputError(f"expected a contrast of {', '.join(self._contrasts)}, got {asked['contrast']!r}")
            folder = others.get(asked["weights"], self._bundle.folder)
            # A copy that a train task made holds the code of the bundle that it was made from, which is trusted by now.
            trust = self._trust or folder != self._bundle.folder
            self._opened[key] = open_computed(
                RunRequest(
                    str(folder), folder, folder, device=key[0], trust=trust, changes=_changes(asked, self._usual)
                )
            )
        return self._opened[key]


def _changes(asked: Mapping[str, str], usual: str) -> tuple[str, ...]:
    return (f"contrast={asked['contrast']}",) if asked.get("contrast", usual) != usual else ()


def first(asked: object) -> str:
    """Returns what was chosen: clients send back the whole list where nobody chose."""
    return str(asked[0] if isinstance(asked, list) and asked else asked)


def _said(request: Mapping[str, Any], name: str, usual: bool) -> bool:
    """A yes or no; clients send it as JSON, or as a word."""
    return str(request.get(name, usual)).lower() in {"true", "1", "yes"}


def _write(result: Result, folder: Path, asked: Mapping[str, str], *, compress: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    extension = asked["result_extension"]
    with tempfile.NamedTemporaryFile(prefix="medgen-", suffix=extension, dir=folder, delete=False) as file:
        path = Path(file.name)
    try:
        write_served(result, path, asked["result_dtype"], compress=compress)
    except MedgenError:
        path.unlink()
        raise
    return path


def _params(result: Result, seconds: float) -> dict[str, Any]:
    """What a client is told beside the image: plain JSON types, and no word of whose it is."""
    told: dict[str, Any] = {
        "label_names": {},
        "description": result.kind.description,
        "unit": result.kind.unit,
        "synthetic": result.kind.synthetic,
        "flags": list(result.flags),
        "provenance": result.provenance.to_json(),
        "latencies": {"total": round(seconds, 2), **{stage: round(s, 2) for stage, s in result.seconds.items()}},
    }
    if result.findings is not None:
        told |= _findings(result.findings)
    return told


def _findings(findings: Findings) -> dict[str, Any]:
    regions = [
        {
            "name": region.name,
            "score": _number(region.score),
            "evidence": _number(region.evidence),
            "p": _number(region.p),
            "volume_ml": _number(region.volume_ml),
            "peak_mm": list(region.peak_mm),
        }
        for region in findings.regions
    ]
    whole = {"score": _number(findings.score), "p_scan": _number(findings.p_scan), "reference": findings.reference}
    return {**whole, "regions": regions}


def _number(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return None if value is None or math.isnan(value) else value
