"""The app that a MONAI Label server loads: each bundle an infer task of its name, or a train task too."""

import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask

import medgen
from medgen.read.connection import session_with_credentials
from medgen.run.catalog import find_bundle
from medgen.serve.datastore import PlainNames, SeriesDatastore
from medgen.serve.infer import BundleInfer, first
from medgen.serve.train import BundleTrain

MODELS, TRUST = "models", "trust"
_FORBIDDEN, _GONE, _UNUSABLE = 403, 404, 422


class MedgenApp(MONAILabelApp):  # type: ignore[misc]  # MONAI Label is untyped
    """Serves bundles.

    Args:
        app_dir: a folder for logs, uploads and trained weights.
        studies: a folder, or a DICOMweb URL.
        conf: `models`: folders of bundles, joined as paths are; `trust`: `"true"` runs the code of bundles that did not
            come with medgen.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self._bundles = [find_bundle(folder) for folder in conf[MODELS].split(os.pathsep)]
        self._trust = conf.get(TRUST, "") == "true"
        about = "One scan becomes another, cleaner, or judged. Research software, not a medical device."
        super().__init__(app_dir, studies, dict(conf), name="medgen", description=about, version=medgen.__version__)

    def init_infers(self) -> dict[str, InferTask]:
        """Returns a task for each bundle."""
        computer = ThreadPoolExecutor(1, "medgen")
        return {
            bundle.name: BundleInfer(bundle, Path(self.app_dir), computer, trust=self._trust)
            for bundle in self._bundles
        }

    def init_trainers(self) -> dict[str, TrainTask]:
        """Returns a task for each bundle that says how it is trained."""
        configs = (bundle.folder / "configs" / "train" for bundle in self._bundles)
        trainable = [any(path.with_suffix(kind).is_file() for kind in (".yaml", ".json")) for path in configs]
        return {
            bundle.name: BundleTrain(bundle, Path(self.app_dir), trust=self._trust)
            for bundle, can in zip(self._bundles, trainable, strict=True)
            if can
        }

    def init_batch_infer(self) -> Callable[..., dict[str, Any]]:
        """Returns what runs a model over many images."""
        return _Batch()

    def init_datastore(self) -> Datastore:
        """Returns where the studies are."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return PlainNames(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def _init_dicomweb_datastore(self) -> Datastore:
        client = DICOMwebClientX(
            url=self.studies,
            session=session_with_credentials(),
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
        )
        return SeriesDatastore(
            self.studies,
            client=client,
            search_filter=settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER,
            cache_path=settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or None,
            convert_to_nifti=settings.MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI,
        )

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Runs a model on an image, once both are known to be there and to be the caller's to ask for.

        Raises:
            HTTPException: 404, if there is no such model or image; 403 for a file that is neither uploaded nor in the
                studies; 422, if the image cannot be used.
        """
        if request.get("model") not in self._infers:
            raise HTTPException(_GONE, f"expected a model of {', '.join(self._infers)}, got {request.get('model')!r}")
        store = datastore or self.datastore()
        self._require_image(str(request.get("image", "")), store)
        if isinstance(store, SeriesDatastore) and request.get("save_label"):
            store.require_kept(str(request.get("label_tag", "")))  # before the work, not after it
        return super().infer(request, datastore)  # type: ignore[no-any-return]

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns an image to work on next.

        Raises:
            HTTPException: 404, if there is no such strategy.
        """
        asked = request.get("strategy") or "random"
        if asked not in self._strategies:
            raise HTTPException(_GONE, f"expected a strategy of {', '.join(self._strategies)}, got {asked!r}")
        return super().next_sample(request)  # type: ignore[no-any-return]

    def _require_image(self, image: str, datastore: Datastore) -> None:
        if os.path.exists(image):  # noqa: PTH110 - as MONAI Label asks: "" is no path
            # A caller may name any file in `params`, and MONAI Label would open it.
            places = [Path(tempfile.gettempdir()), Path(self.app_dir)]
            places += [] if isinstance(datastore, DICOMWebDatastore) else [Path(self.studies)]
            if not any(Path(image).resolve().is_relative_to(place.resolve()) for place in places):
                raise HTTPException(_FORBIDDEN, "expected an image of the studies or an upload, got another file")
        elif not image or not datastore.get_image_uri(image):
            raise HTTPException(_GONE, "expected the ID of an image in the datastore, got one that it does not have")


class _Batch(BatchInferTask):  # type: ignore[misc]  # as above
    """Runs a model over many images: a bad one costs itself alone, and a machine without a GPU is not asked for one."""

    def __call__(self, request: dict[str, Any], datastore: Any, infer: Callable[..., Any]) -> dict[str, Any]:  # noqa: ANN401
        def each(asked: dict[str, Any], store: Any) -> dict[str, Any]:  # noqa: ANN401 - a datastore
            try:
                return infer(asked, store)  # type: ignore[no-any-return]
            except HTTPException as error:
                return {"error": error.detail}

        if not torch.cuda.is_available():  # MONAI Label would divide by the number of GPUs
            device = first(request.get("device") or "auto")
            if device not in {"auto", "cpu", "cuda"}:  # the last is what its endpoint says where nobody said anything
                raise HTTPException(_UNUSABLE, f"expected a device that is there, auto or cpu, got {device}")
            request = {**request, "multi_gpu": False, "device": "cpu"}
        return super().__call__(request, datastore, each)  # type: ignore[no-any-return]
