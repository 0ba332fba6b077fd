"""Studies of a DICOMweb server: each series whole, or not there."""

import re
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from medgen.errors import MedgenError
from medgen.read.dicomweb import DicomWeb

_UID = re.compile(r"[0-9.]{1,64}")  # PS3.5, section 9.1
_GONE, _UNUSABLE, _BAD_GATEWAY = 404, 422, 502
_PATIENCE_S = 30.0  # somebody waits before a screen


class SeriesDatastore(DICOMWebDatastore):  # type: ignore[misc]  # MONAI Label is untyped
    """MONAI Label's datastore, but for how series are retrieved.

    Its own takes any folder that holds a file for the series: of one whose download was cut off the rest would be
    missing, and nobody would know. And it asks for decompressed images, which not every server can give.
    """

    def __init__(self, address: str, **options: Any) -> None:  # noqa: ANN401 - as MONAI Label's own takes them
        super().__init__(**options)
        self._server = DicomWeb(address, patience_s=_PATIENCE_S)

    def get_image_uri(self, image_id: str) -> str:
        """Returns the folder of a series, retrieved on first use.

        Raises:
            HTTPException: 404, if the server has no such series; 502, if it does not give it.
        """
        if not _UID.fullmatch(image_id):
            raise HTTPException(_GONE, "expected a SeriesInstanceUID as the image's ID, got something else")
        try:
            found = self._server.find({"SeriesInstanceUID": image_id})
            if not found:
                raise HTTPException(_GONE, "expected a series of the DICOMweb server, got one that it does not have")
            folder = Path(self._datastore.image_path()).resolve()
            place = self._server.retrieve(found[0], folder)
            link = folder / image_id  # where MONAI Label looks whether an image with labels is still there
            if not link.is_symlink():
                link.symlink_to(place.name)
            return str(place)
        except MedgenError as error:
            raise HTTPException(_BAD_GATEWAY, f"the series: {error}") from None

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keeps a result here; it does not go to the server.

        Raises:
            HTTPException: as `require_kept`.
        """
        self.require_kept(label_tag)
        self.get_image_uri(image_id)
        model = ImageLabelModel(image=DataModel(ext="", info={"name": image_id}))
        self._datastore.objects.setdefault(image_id, model)
        return str(LocalDatastore.save_label(self, image_id, label_filename, label_tag, label_info))

    def require_kept(self, label_tag: str) -> None:
        """Refuses a tag that says to send a result to the server.

        Raises:
            HTTPException: 422; it would become a DICOM segmentation.
        """
        if label_tag == DefaultLabelTag.FINAL:
            raise HTTPException(
                _UNUSABLE,
                "expected a label_tag other than final, which MONAI Label sends to the server as a mask; "
                "`medgen run -i dicomweb+... --store` sends images",
            )
