"""B-scans as pictures: a JPEG, a PNG or a page of a TIFF is one; a TIFF of several pages, or a list, is a volume.

Values are as stored: 0 to 255 of 8 bits, 0 to 65535 of 16 bits (4095 where a scanner fills 12 of them); nothing is
scaled to a common range here.

A picture says nothing of the size of its pixels. Its DPI tag says how large to print it, and exporters write 72 or 96
whatever the scan; it is not believed. What a manifest states is, else 1 mm stands for a pixel, as in other tools, and
the volume is flagged `spacing-unknown`.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from medgen.errors import GeometryError, InputError, IntensityError, TooLargeError, UnreadableError
from medgen.geometry import Grid
from medgen.read.memory import require_memory
from medgen.read.ophthalmic import picture_grid, require_size
from medgen.read.volume import Volume, put_slab, require_usable

PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
COLOURED_FLAG = "coloured-marks"
# Between the channels of a grey picture, JPEG's rounding leaves less than this many grey levels on average.
_GREY = 2.0
# A line or an arrow drawn over a scan is further from grey than any rounding, though it is few of the pixels.
_MARKED, _MARKED_SHARE = 40, 1e-3
_FORMATS = ("JPEG", "PNG", "TIFF")
_SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")
_COLOUR = ("RGB", "RGBA", "P", "LA", "PA")
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError),
    *(MemoryError, NotImplementedError, struct.error, zlib.error, Warning),
)

Page = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PictureHeader:
    """What a picture's header says, after its checks.

    Attributes:
        form: `"JPEG"`, `"PNG"` or `"TIFF"`.
        size: columns and rows.
        pages: 1, but for a TIFF.
        bits: of a grey value, 8 or 16.
    """

    form: str
    size: tuple[int, int]
    pages: int
    bits: int

    def describe(self) -> str:
        """Returns it in a few words: `"8-bit JPEG"`, `"16-bit TIFF of 49 pages"`."""
        return f"{self.bits}-bit {self.form}{f' of {self.pages} pages' if self.pages > 1 else ''}"


def is_picture(path: Path) -> bool:
    """Says whether a file's name is that of a picture, in any case of letters."""
    return path.name.lower().endswith(PICTURE_EXTENSIONS)


def check_pictures(files: Sequence[Path], spacing_um: Sequence[float] = ()) -> tuple[Grid, PictureHeader, list[str]]:
    """Checks the headers of B-scans that make one volume, without decoding them.

    Args:
        files: one picture, or several in the order of the B-scans.
        spacing_um: lateral, axial and, if known, between B-scans; empty where it is not known.

    Returns:
        the grid that the volume will have, the header of the first picture, and the grid's flags.

    Raises:
        UnreadableError: no picture, several pages in one of several files, a turned one, or no 8 or 16 bits of grey.
        GeometryError: too small, or of different sizes.
        TooLargeError: more pixels than Pillow opens.
    """
    headers = [check_picture(file) for file in files]
    first = headers[0]
    for file, header in zip(files, headers, strict=True):
        if header.pages > 1 and len(files) > 1:
            raise UnreadableError(f"{file.name}: expected one of {len(files)} B-scans, got {header.pages} pages")
        if (header.size, header.bits) != (first.size, first.bits):
            told = [f"{h.size[0]} x {h.size[1]} pixels of {h.bits} bits" for h in (first, header)]
            raise GeometryError(f"{file.name}: expected a B-scan of {told[0]} as the first, got {told[1]}")
    pages = first.pages if len(files) == 1 else len(files)
    grid, flags = picture_grid((*first.size, pages), [um / 1000 for um in spacing_um])
    return grid, first, list(flags)


def check_picture(file: Path) -> PictureHeader:
    """Reads and checks the header of one file only.

    Raises:
        InputError: as `check_pictures`.
    """
    with _opened(file) as picture:
        pages = int(getattr(picture, "n_frames", 1))
        if pages > 1 and picture.format != "TIFF":
            raise UnreadableError(f"{file.name}: expected one picture, got an animation of {pages}")
        sizes = []
        for page in range(pages):
            if pages > 1:
                picture.seek(page)
            sizes.append((picture.size, _bits(picture, file.name)))
            _require_upright(picture, file.name)
        (size, bits), *others = dict.fromkeys(sizes)
        if others:
            told = ", ".join(f"{columns} x {rows}" for (columns, rows), _ in (sizes[0], *others[:3]))
            raise GeometryError(f"{file.name}: expected pages of one size, got {told}; keep the B-scans alone")
        require_size(*size, file.name)
        return PictureHeader(str(picture.format), size, pages, bits)


def read_pictures(files: Sequence[Path], spacing_um: Sequence[float] = ()) -> Volume:
    """Reads B-scans as a volume `(lateral, depth, B-scan)`, float32, values as stored (see above).

    The affine is `diag(-lateral, -axial, between)` mm: columns run to the left, rows to the back, as in a picture that
    ITK reads. Which eye it is, and where in it, no picture says.

    Args:
        files: one picture, or several in the order of the B-scans.
        spacing_um: lateral, axial and, if known, between B-scans; empty where it is not known.

    Raises:
        UnreadableError: truncated, colour, transparent, and as `check_pictures`.
        GeometryError: too small, or of different sizes.
        IntensityError: colour, or constant.
        TooLargeError: it would not fit in memory.
    """
    grid, header, flags = check_pictures(files, spacing_um)
    require_memory(grid.shape, files[0].name)
    image = np.empty(grid.shape, dtype=np.float32)
    marked = False
    for number in range(grid.shape[2]):
        file, page = (files[0], number) if header.pages > 1 else (files[number], 0)
        values, coloured = _read_page(file, page)
        marked = marked or coloured
        put_slab(image, number, values[None])
    require_usable(image, files[0].name)
    return Volume(image, grid, "OPT", (*flags, *((COLOURED_FLAG,) if marked else ())))


@contextmanager
def _opened(file: Path) -> Iterator[ImageFile.ImageFile]:
    """Opens a picture, and turns whatever Pillow raises in the block into what is wrong with the file."""
    try:
        with Image.open(file, formats=_FORMATS) as picture:
            _require_few_pixels(picture)
            yield picture
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise TooLargeError(
            f"{file.name}: expected a B-scan, got a picture of more than {most} million pixels, which may be made to "
            "fill the memory; cut it down first"
        ) from error
    except FileNotFoundError as error:
        raise UnreadableError(f"{file.name}: expected a JPEG, PNG or TIFF picture, got nothing") from error
    except PermissionError as error:
        raise UnreadableError(f"{file.name}: may not be read; check its permissions") from error
    except UnidentifiedImageError as error:
        size = file.stat().st_size
        found = f"{size} bytes of something else" if size else "an empty file"
        raise UnreadableError(f"{file.name}: expected a JPEG, PNG or TIFF picture, got {found}") from error
    except _ERRORS as error:
        raise UnreadableError(
            f"{file.name}: expected a whole picture, got a truncated or damaged file ({type(error).__name__})"
        ) from error


def _require_few_pixels(picture: ImageFile.ImageFile) -> None:
    """Refuses what Pillow only warns of, up to twice its limit."""
    if Image.MAX_IMAGE_PIXELS and picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError


def _bits(picture: ImageFile.ImageFile, name: str) -> int:
    """The bits of a grey value; refuses what has no 8 or 16, or in which high values may be shown dark."""
    deep = any(";16" in str(tile[3]) or ";12" in str(tile[3]) for tile in picture.tile)
    if picture.mode in _SIXTEEN:
        tags = getattr(picture, "tag_v2", {})
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            raise UnreadableError(f"{name}: expected high values shown white, got a TIFF that shows zero white")
        return 16
    if picture.mode == "L" or (picture.mode in _COLOUR and not deep):
        return 8
    depth = f"{picture.mode}{' of 16 bits a channel' if deep else ''}"
    raise UnreadableError(f"{name}: expected 8 or 16 bits of grey, got a picture of mode {depth}; convert it first")


def _require_upright(picture: ImageFile.ImageFile, name: str) -> None:
    """Refuses a picture that its EXIF tag wants turned before it is shown: what depth is would depend on the tool."""
    # A PNG may hold the tag after its pixels, which are not decoded here: `read_pictures` looks again.
    if picture.format == "PNG" and "exif" not in picture.info:
        return
    turn = picture.getexif().get(ExifTags.Base.Orientation, 1)
    if turn not in {0, 1}:
        raise UnreadableError(f"{name}: expected EXIF orientation 1, got {turn}; turn the picture's pixels first")


def _read_page(file: Path, page: int) -> tuple[Page, bool]:
    """Decodes one page, `(rows, columns)`, and says whether something coloured is drawn over it."""
    with _opened(file) as picture:
        if page:
            picture.seek(page)
        picture.load()
        _require_upright(picture, file.name)
        if picture.mode in {"L", *_SIXTEEN}:
            return np.asarray(picture, dtype=np.float32), False
        channels = np.asarray(picture.convert("RGBA"), dtype=np.int16)
    if (channels[..., 3] < 255).any():
        raise UnreadableError(f"{file.name}: expected an opaque picture, got transparent pixels; flatten it first")
    return _grey(channels[..., :3], file.name)


def _grey(rgb: npt.NDArray[np.int16], name: str) -> tuple[Page, bool]:
    """The mean of three channels that differ by rounding only, and whether some pixels differ by more."""
    apart = np.stack([np.abs(rgb[..., a] - rgb[..., b]) for a, b in ((0, 1), (1, 2), (0, 2))])
    difference = float(apart.mean(axis=(1, 2)).max())
    if difference > _GREY:
        raise IntensityError(
            f"{name}: expected a grey B-scan, got a colour picture (its channels differ by {difference:.1f} grey "
            "levels on average); export it in grey, without overlays"
        )
    marked = float((apart.max(axis=0) > _MARKED).mean()) > _MARKED_SHARE
    return rgb.mean(axis=2, dtype=np.float32), marked
