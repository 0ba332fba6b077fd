"""Studies of a folder or a DICOMweb server: names that lead nowhere else; each series whole, or not there."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from medgen.errors import MedgenError
from medgen.read.dicomweb import DicomWeb
from medgen.serve.studies import KINDS, LISTED
from medgen.write.served import EXTENSIONS

_PLAIN = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}")  # it becomes the name of a file or folder
_UID = re.compile(r"[0-9.]{1,64}")  # PS3.5, section 9.1
_FORBIDDEN, _GONE, _TAKEN, _UNUSABLE, _BAD_GATEWAY = 403, 404, 409, 422, 502
_MOST_INFO = 100_000  # bytes
_UPLOADED = "uploaded"  # so marked in MONAI Label's list
_PATIENCE_S = 30.0  # somebody waits before a screen


class PlainNames(LocalDatastore):  # type: ignore[misc]  # MONAI Label is untyped
    """MONAI Label's datastore of a folder, but that a caller can neither leave it nor replace or delete a study in it.

    Its own joins what a caller sends to a path as it is, and follows links.
    """

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Adds an image.

        Raises:
            HTTPException: 422, if the ID is no plain name, or the file of no kind that images have; 409, if the ID is
                that of a study.
        """
        with _upload(image_filename):
            _require_plain(image_id, "image")
            _require_kind(image_filename, KINDS)
            if self._is_upload(image_id):
                self.remove_image(image_id)  # with its labels, which are of another image
            elif image_id in self._datastore.objects or any(os.path.lexists(place) for place in self._places(image_id)):
                raise HTTPException(_TAKEN, "expected an ID that no study has, got one that is taken")
            _require_plain_json(image_info)
            return str(super().add_image(image_id, image_filename, {**(image_info or {}), _UPLOADED: True}))

    def remove_image(self, image_id: str) -> None:
        """Removes an image that was uploaded, and its labels.

        Raises:
            HTTPException: 404, if there is none; 403, if it is a study.
        """
        self._require_there(image_id)
        if not self._is_upload(image_id):
            raise HTTPException(_FORBIDDEN, "expected an image that was uploaded, got a study; remove it where it lies")
        super().remove_image(image_id)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Notes something about an image, but not that it was uploaded.

        Raises:
            HTTPException: 404, if there is none.
        """
        self._require_there(image_id)
        _require_plain_json(info)
        super().update_image_info(image_id, {name: value for name, value in info.items() if name != _UPLOADED})

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keeps a label of an image.

        Raises:
            HTTPException: 404, if there is no such image; 422, if the tag is no plain name, or the file of no kind that
                images have.
        """
        with _upload(label_filename):
            self._require_there(image_id)
            _require_label(label_tag, label_filename)
            _require_plain_json(label_info)
            return str(super().save_label(image_id, label_filename, label_tag, label_info))

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Notes something about a label.

        Raises:
            HTTPException: 404, if there is none; 422, if MONAI Label could not read it again.
        """
        self._require_there(label_id)
        if label_tag not in self._datastore.objects[label_id].labels:
            raise HTTPException(_GONE, "expected the tag of a label of this image, got one that it does not have")
        _require_plain_json(info)
        super().update_label_info(label_id, label_tag, info)

    def _is_upload(self, image_id: str) -> bool:
        """Says so of what was uploaded, unless a study has taken its place: a link to one, or one of that name."""
        known = self._datastore.objects.get(image_id)
        place = Path(self._datastore.image_path()) / f"{image_id}{known.image.ext}" if known else None
        return bool(known and known.image.info.get(_UPLOADED) and place and not place.is_symlink())

    def _places(self, image_id: str) -> list[Path]:
        folder = Path(self._datastore.image_path())
        return [folder / f"{image_id}{pattern.removeprefix('*')}" for pattern in LISTED]

    def _require_there(self, image_id: str) -> None:
        if image_id not in self._datastore.objects:
            raise HTTPException(_GONE, "expected the ID of an image in the datastore, got one that it does not have")


@contextmanager
def _upload(file: str) -> Iterator[None]:
    """Removes an upload that is refused: MONAI Label does so only after an answer that is none."""
    try:
        yield
    except HTTPException:
        if Path(file).parent == Path(tempfile.gettempdir()):
            Path(file).unlink(missing_ok=True)
        raise


def _require_plain_json(info: object) -> None:
    """What MONAI Label could not read again from its list would keep it from starting."""
    try:
        written = json.dumps(info, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        written = b""
    strategy = info.get("strategy", {}) if isinstance(info, dict) else {}
    if not written or len(written) > _MOST_INFO or not isinstance(info, dict | None) or not isinstance(strategy, dict):
        raise HTTPException(_UNUSABLE, "expected a JSON object of plain text and numbers as information")


def _require_label(tag: str, file: str) -> None:
    _require_plain(tag, "tag")
    _require_kind(file, tuple(dict.fromkeys((*KINDS, *EXTENSIONS))))


def _require_plain(name: str, what: str) -> None:
    if not _PLAIN.fullmatch(name):
        raise HTTPException(
            _UNUSABLE, f"expected {what} as a plain name, without / and a dot at its beginning, got another"
        )


def _require_kind(file: str, kinds: tuple[str, ...]) -> None:
    if not file.lower().endswith(kinds):
        raise HTTPException(_UNUSABLE, f"expected a file that ends in {', '.join(kinds)}, got another")


class SeriesDatastore(PlainNames, DICOMWebDatastore):  # type: ignore[misc]  # as above
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
        with _upload(label_filename):
            self.require_kept(label_tag)
            _require_label(label_tag, label_filename)
            _require_plain_json(label_info)
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
