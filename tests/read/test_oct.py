"""B-scans from pictures: values as stored, X lateral and Y depth; what is no B-scan costs itself, with its reason."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImaged
from PIL import Image

from medgen.errors import GeometryError, InputError, IntensityError, TooLargeError, UnreadableError
from medgen.geometry import Grid
from medgen.read.discover import find_cases
from medgen.read.oct import check_pictures, read_pictures
from medgen.read.reader import BScanReader, flags_of, read_image
from medgen.simulate.ophthalmic import write_opt
from tests.read.eyes import SHAPE, bscan, picture, save, volume

# MONAI's LoadImaged tells that an optional DICOM codec is absent.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.tif", "a.TIFF"])
@pytest.mark.parametrize("highest", [255, 4095, 65535])
def test_a_lossless_picture_is_its_values(tmp_path: Path, name: str, highest: int) -> None:
    read = read_pictures([save(tmp_path / name, bscan(highest=highest))])
    assert read.image.dtype == np.float32
    np.testing.assert_array_equal(read.image[..., 0], bscan(highest=highest))
    np.testing.assert_array_equal(read.grid.affine, np.diag([-1.0, -1, 1, 1]))
    assert (read.flags, read.modality) == (("spacing-unknown",), "OPT")


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG"])
def test_a_jpeg_is_its_values_but_for_its_loss_and_its_dpi_is_not_believed(tmp_path: Path, name: str) -> None:
    read = read_pictures([save(tmp_path / name, bscan(), quality=95, dpi=(96, 96))])
    assert np.abs(read.image[..., 0] - bscan()).mean() < 3
    assert read.grid.spacing_mm == (1.0, 1.0, 1.0)
    assert read.flags == ("spacing-unknown",)


def test_a_tiff_of_pages_is_a_volume_in_their_order(tmp_path: Path) -> None:
    read = read_pictures([save(tmp_path / "v.tif", volume())])
    np.testing.assert_array_equal(read.image, volume())


def test_a_list_is_a_volume_in_its_order_with_the_spacing_it_states(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{9 - k}.png", bscan(k)) for k in range(3)]
    read = read_pictures(files, (11.5, 3.87, 240))
    np.testing.assert_array_equal(read.image, volume(3))
    np.testing.assert_allclose(read.grid.affine, np.diag([-0.0115, -0.00387, 0.24, 1]))
    assert read.flags == ()
    assert read_pictures(files, (11.5, 3.87)).flags == ("spacing-between-unknown",)
    assert read_pictures(files[:1], (11.5, 3.87)).flags == ()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_a_picture_of_equal_channels_is_grey(tmp_path: Path, mode: str) -> None:
    picture(bscan()).convert(mode).save(tmp_path / "a.png")
    read = read_pictures([tmp_path / "a.png"])
    np.testing.assert_array_equal(read.image[..., 0], bscan())
    assert read.flags == ("spacing-unknown",)


def test_a_colour_jpeg_of_a_grey_picture_is_grey(tmp_path: Path) -> None:
    picture(bscan()).convert("RGB").save(tmp_path / "a.jpg", quality=60)
    read = read_pictures([tmp_path / "a.jpg"])
    assert np.abs(read.image[..., 0] - bscan()).mean() < 6


def test_a_coloured_line_over_a_grey_picture_is_flagged(tmp_path: Path) -> None:
    pixels = np.array(picture(bscan()).convert("RGB"))
    pixels[40, :60] = (0, 200, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_pictures([tmp_path / "a.png"]).flags == ("spacing-unknown", "coloured-marks")


def coloured(path: Path) -> None:
    pixels = np.array(picture(bscan()).convert("RGB"))
    pixels[..., 0] //= 2
    Image.fromarray(pixels).save(path)


def transparent(path: Path) -> None:
    image = picture(bscan()).convert("RGBA")
    image.putalpha(100)
    image.save(path)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(bscan()).save(path, exif=exif)


def whites(path: Path) -> None:
    picture(bscan(highest=4095)).save(path, tiffinfo={262: 0})


def unlike_pages(path: Path) -> None:
    picture(bscan()).save(path, save_all=True, append_images=[picture(bscan(shape=(96, 70)))])


def animated(path: Path) -> None:
    picture(bscan()).save(path, save_all=True, append_images=[picture(bscan(1))])


def cut(path: Path, keep: float = 0.6) -> None:
    picture(bscan()).save(path)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


@pytest.mark.parametrize(
    ("name", "write", "error", "said"),
    [
        ("a.png", coloured, IntensityError, r"a.png: expected a grey B-scan, got a colour picture \(.* differ by"),
        ("a.png", transparent, UnreadableError, "expected an opaque picture, got transparent pixels"),
        ("a.jpg", turned, UnreadableError, "expected EXIF orientation 1, got 6"),
        ("a.png", turned, UnreadableError, "expected EXIF orientation 1, got 6"),
        ("a.tif", turned, UnreadableError, "expected EXIF orientation 1, got 6"),
        ("a.tif", whites, UnreadableError, "got a TIFF that shows zero white"),
        ("a.tif", unlike_pages, GeometryError, "expected pages of one size, got 96 x 80, 96 x 70"),
        ("a.png", animated, UnreadableError, "expected one picture, got an animation of 2"),
        ("a.png", cut, UnreadableError, "a.png: expected a whole picture, got a truncated or damaged file"),
        ("a.jpg", cut, UnreadableError, "a.jpg: expected a whole picture, got a truncated or damaged file"),
        ("a.tif", cut, UnreadableError, "a.tif: expected .* picture, got"),
        ("a.png", lambda p: p.write_bytes(b""), UnreadableError, "JPEG, PNG or TIFF picture, got an empty file"),
        ("a.jpg", lambda p: p.write_text("no picture"), UnreadableError, "got 10 bytes of something else"),
        ("a.png", lambda p: None, UnreadableError, "expected a JPEG, PNG or TIFF picture, got nothing"),
        ("a.png", lambda p: save(p, bscan(shape=(96, 63))), GeometryError, "64 x 64 pixels or more, got 96 x 63"),
        ("a.png", lambda p: picture(bscan()).convert("1").save(p), UnreadableError, "got a picture of mode 1"),
        ("a.tif", lambda p: picture(bscan()).convert("F").save(p), UnreadableError, "got a picture of mode F"),
        ("a.png", lambda p: save(p, 0 * bscan() + 7), IntensityError, "voxels that are all 7"),
    ],
)
def test_what_is_no_b_scan_is_refused(
    tmp_path: Path, name: str, write: Callable[[Path], object], error: type[InputError], said: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(error, match=said):
        read_pictures([tmp_path / name])


def test_a_decompression_bomb_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", bscan())
    for limit in (SHAPE[0] * SHAPE[1] - 1, 100):  # Pillow warns up to twice its limit, and raises above
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(
            TooLargeError, match=r"a.png: expected a B-scan, got a picture of more than 0 million pixels"
        ):
            check_pictures([path])


def test_b_scans_of_a_list_are_alike(tmp_path: Path) -> None:
    first, other = save(tmp_path / "a.png", bscan()), save(tmp_path / "b.png", bscan(shape=(90, 80)))
    with pytest.raises(
        GeometryError, match=r"b.png: expected a B-scan of 96 x 80 pixels of 8 bits as the first, got 90"
    ):
        check_pictures([first, other])
    with pytest.raises(GeometryError, match="pixels of 16 bits"):
        check_pictures([first, save(tmp_path / "c.png", bscan(highest=4095))])
    with pytest.raises(UnreadableError, match=r"v.tif: expected one of 2 B-scans, got 5 pages"):
        check_pictures([first, save(tmp_path / "v.tif", volume())])


def test_the_header_tells_the_grid_without_decoding(tmp_path: Path) -> None:
    path = save(tmp_path / "v.tif", volume(highest=65535))
    grid, header, flags = check_pictures([path])
    assert header.describe() == "16-bit TIFF of 5 pages"
    assert flags == ["spacing-unknown"]
    assert not grid.differs_from(read_pictures([path]).grid)


def test_load_imaged_reads_what_read_image_reads(tmp_path: Path) -> None:
    save(tmp_path / "a.png", bscan())
    write_opt(tmp_path / "b.dcm", volume())
    load = LoadImaged(keys="image", reader=BScanReader, ensure_channel_first=True)
    for case in find_cases(tmp_path, salt=b"", modality="OPT"):
        loaded, read = load({"image": str(case.files[0])})["image"], read_image(case)
        assert loaded.shape == read.shape
        assert (loaded == read).all()
        assert not Grid(read.shape[1:], loaded.affine.numpy()).differs_from(Grid(read.shape[1:], read.affine.numpy()))
        assert flags_of(loaded) == flags_of(read)
        assert loaded.meta["modality"] == "OPT"


def test_a_brain_that_is_refused_is_not_read_either(tmp_path: Path) -> None:
    nib.Nifti1Image(volume().astype(np.int16), np.eye(4)).to_filename(tmp_path / "brain.nii.gz")
    (case,) = find_cases(tmp_path, salt=b"", modality="OPT")
    with pytest.raises(UnreadableError, match="got a NIfTI file"):
        read_image(case)


def test_load_imaged_reads_a_list_with_its_spacing_and_raises_what_is_wrong(tmp_path: Path) -> None:
    files = [str(save(tmp_path / f"{k}.png", bscan(k))) for k in range(3)]
    load = LoadImaged(keys="image", reader=BScanReader, ensure_channel_first=True)
    marked = load({"image": [files[0] + "#spacing_um:11.5,3.87,240", *files[1:]]})["image"]
    np.testing.assert_array_equal(marked[0].numpy(), volume(3))
    np.testing.assert_allclose(marked.affine.diagonal(), [-0.0115, -0.00387, 0.24, 1])
    (tmp_path / "brain.nii.gz").write_bytes(bytes(400))
    with pytest.raises(UnreadableError, match=r"B-scans \(JPEG, PNG, TIFF, or DICOM OPT/OP\), got another file"):
        load({"image": str(tmp_path / "brain.nii.gz")})
