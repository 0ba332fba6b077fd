"""NIfTI voxels come back with their values and place; a file that cannot be trusted is refused with the reason."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isal import igzip

from medgen.errors import GeometryError, IntensityError, UnreadableError
from medgen.geometry import Grid
from medgen.read.nifti import check_header, read_nifti
from tests.read.series import oblique_affine, voxels


def save(
    path: Path, data: np.ndarray | None = None, affine: np.ndarray | None = None, sform: int = 1, qform: int = 1
) -> Path:
    image = nib.Nifti1Image(voxels().astype(np.int16) if data is None else data, None)
    image.header.set_sform(oblique_affine() if affine is None else affine, sform)
    image.header.set_qform(oblique_affine() if affine is None else affine, qform, strip_shears=True)
    image.to_filename(path)
    return path


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3).filter(lambda s: np.prod(s) > 1),
    dtype=st.sampled_from(["u1", "<i2", ">i2", "<u4", "<f4", ">f4", "<f8"]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    scaled=st.booleans(),
)
def test_values_and_grid(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int, int], dtype: str, suffix: str, scaled: bool
) -> None:
    data = (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)
    image = nib.Nifti1Image(data, oblique_affine(), nib.Nifti1Header(endianness=">" if ">" in dtype else "<"))
    image.set_data_dtype(dtype)
    path = tmp_path_factory.mktemp("nifti") / f"a{suffix}"
    image.to_filename(path)
    if scaled:
        _patch_scale(path, slope=2.5, intercept=-7.0, order=">" if ">" in dtype else "<")
    volume = read_nifti(path)
    expected = data.astype(np.float64) * 2.5 - 7.0 if scaled else data
    np.testing.assert_allclose(volume.image, expected, rtol=1e-6)
    assert volume.image.dtype == np.float32
    assert volume.image.flags.c_contiguous
    assert not volume.grid.differs_from(Grid(shape, oblique_affine()))


def _patch_scale(path: Path, slope: float, intercept: float, order: str) -> None:
    packed = path.suffix == ".gz"
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    content[112:120] = np.array([slope, intercept], dtype=f"{order}f4").tobytes()
    path.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))


def test_trailing_axes_of_one_are_dropped(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", voxels()[..., None, None].astype(np.int16))
    np.testing.assert_array_equal(read_nifti(path).image, voxels())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "got an empty one"),
        (b"This is a letter, not an image.\n" * 20, "got text"),
        (gzip.compress(b"short", mtime=0), "got too few bytes"),
        (gzip.compress(bytes(1000), mtime=0), "got a damaged header"),
        (gzip.compress(np.random.default_rng(0).bytes(9000), mtime=0)[:200], "truncated or damaged gzip"),
        (b"\x89PNG\r\n" + bytes(400), "got something else"),
    ],
)
def test_files_that_are_no_nifti(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=reason) as caught:
        read_nifti(path)
    assert str(tmp_path) not in str(caught.value)


def test_an_uncompressed_file_with_the_wrong_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    with pytest.raises(UnreadableError, match=r"not compressed \(call it .nii\)"):
        read_nifti(path)


@pytest.mark.parametrize("missing", [1, 40, 5000])
def test_truncated_gzip(tmp_path: Path, missing: int) -> None:
    noise = np.random.default_rng(0).normal(size=(17, 19, 23)).astype(np.float32)
    path = save(tmp_path / "a.nii.gz", noise)
    path.write_bytes(path.read_bytes()[:-missing])
    check_header(path)
    with pytest.raises(
        UnreadableError, match=r"expected 17x19x23 at 0.7x1.1x2.3 mm, LPS, got a truncated or damaged file"
    ):
        read_nifti(path)


NOISE = np.random.default_rng(0).normal(size=(17, 19, 23)).astype(np.float32)
NAMED, EXTRA = b"\x08", b"\x04"  # the flags of a gzip header's optional fields


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:-8],  # ends with the last block, before checksum and length
        lambda packed: packed[:-3],
        lambda packed: packed[:-8] + b"\x00\x00\x00\x00" + packed[-4:],  # of the checksum
        lambda packed: packed[:-4] + b"\x00\x00\x00\x00",  # of the length
        lambda packed: packed + b"no gzip",
        lambda packed: packed + b"x",
        lambda packed: packed + packed[:2],
        lambda packed: packed + packed[:-1],
        lambda packed: packed[:9000] + b"\xff" * 200 + packed[9200:],
        lambda packed: packed[:9000] + packed[9200:],
    ],
    ids=["half", "trailer", "end", "checksum", "length", "text", "byte", "magic", "member", "block", "hole"],
)
def test_a_gzip_damaged_behind_its_header_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = save(tmp_path / "a.nii.gz", NOISE)
    path.write_bytes(damage(path.read_bytes()))
    check_header(path)
    with pytest.raises(
        UnreadableError, match=r"expected 17x19x23 at 0.7x1.1x2.3 mm, LPS, got a truncated or damaged file"
    ):
        read_nifti(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(b"", mtime=0), "got too few bytes"),
        (gzip.compress(b"", mtime=0)[:10], "truncated or damaged gzip"),
        (b"\x1f\x8b\x07" + bytes(400), "truncated or damaged gzip"),  # a method that is not deflate
        (gzip.compress(bytes(100), mtime=0) + b"no gzip", "truncated or damaged gzip"),
        (gzip.compress(bytes(400), mtime=0)[:10] + b"\xff" * 400, "truncated or damaged gzip"),  # no such kind of block
    ],
    ids=["empty", "header", "method", "garbage", "block"],
)
def test_a_gzip_damaged_within_its_header_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=reason):
        check_header(path)


def with_field(packed: bytes, flag: bytes, field: bytes) -> bytes:
    return packed[:3] + flag + packed[4:10] + field + packed[10:]


@pytest.mark.parametrize(
    "pack",
    [
        lambda raw: gzip.compress(raw[:5000]) + gzip.compress(raw[5000:]),
        lambda raw: gzip.compress(raw[:200]) + gzip.compress(raw[200:]),  # within the header
        lambda raw: gzip.compress(raw, mtime=0) + gzip.compress(b""),
        lambda raw: gzip.compress(raw, mtime=0) + bytes(512),  # as tapes pad
        lambda raw: with_field(gzip.compress(raw, mtime=1), NAMED, b"scan.nii\0"),
        lambda raw: with_field(gzip.compress(raw, mtime=1), EXTRA, b"\x03\0abc"),
        lambda raw: gzip.compress(raw, 0),  # stored, not packed
        lambda raw: gzip.compress(raw, 9),
        igzip.compress,
    ],
    ids=["members", "header", "nothing", "padded", "named", "extra", "stored", "best", "isal"],
)
def test_a_gzip_of_any_maker_is_read(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = save(tmp_path / "a.nii", NOISE)
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(pack(path.read_bytes()))
    np.testing.assert_array_equal(read_nifti(packed).image, NOISE)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), bit=st.integers(0, 7))
def test_what_the_standard_library_refuses_is_refused(tmp_path: Path, place: float, bit: int) -> None:
    path = save(tmp_path / "a.nii.gz", NOISE)
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(bytes(content))
    try:
        raw = gzip.decompress(bytes(content))
    except (OSError, EOFError, zlib.error):
        with pytest.raises(UnreadableError):
            read_nifti(path)
    else:  # such as a bit of the time in its header
        np.testing.assert_array_equal(read_nifti(path).image, NOISE)
        assert raw[352:] == NOISE.tobytes("F")


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["t1_t2/ms-mni07/t1.nii.gz", "ct/fnndsc-abdomen-80slices.nii.gz"])
def test_real_scans_are_read_as_the_standard_library_reads_them(real_data: Path, name: str) -> None:
    np.testing.assert_array_equal(read_nifti(real_data / name).image, np.float32(nib.load(real_data / name).dataobj))


def test_a_flipped_byte_in_a_gzip_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(17, 19, 23)).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))
    with pytest.raises(UnreadableError, match="truncated or damaged"):
        read_nifti(path)


def test_truncated_plain_file_is_found_by_its_size(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UnreadableError, match=r"expected 1108 bytes, got 1098: the file is truncated"):
        check_header(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.zeros((4, 5, 6, 3), np.int16), r"shape \(4, 5, 6, 3\) \(3 volumes; split them first\)"),
        (np.zeros(4, np.int16), r"shape \(4,\)"),
        (np.zeros((4, 5, 6), np.complex64), "expected real numbers, got complex64"),
        (np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "expected real numbers, got colour"),
    ],
)
def test_contents_that_are_no_volume(tmp_path: Path, data: np.ndarray, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        check_header(save(tmp_path / "a.nii.gz", data))


def test_an_unknown_orientation_is_refused_unless_allowed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", sform=0, qform=0)
    with pytest.raises(GeometryError, match="left and right are unknown"):
        check_header(path)
    assert check_header(path, allow_irregular=True).flags == ("orientation-unknown",)


@pytest.mark.parametrize(("sform", "qform"), [(0, 1), (4, 0), (1, 1)])
def test_one_form_is_enough(tmp_path: Path, sform: int, qform: int) -> None:
    header = check_header(save(tmp_path / "a.nii.gz", sform=sform, qform=qform))
    assert header.flags == ()
    assert not header.grid.differs_from(Grid(voxels().shape, oblique_affine()))


def test_forms_that_differ_are_flagged_and_the_sform_taken(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz")
    image = nib.load(path)
    other = oblique_affine()
    other[:3, 3] += 5
    image.header.set_qform(other, 1)
    image.to_filename(path)
    header = check_header(path)
    assert header.flags == ("sform-qform-differ",)
    assert not header.grid.differs_from(Grid(voxels().shape, oblique_affine()))


def test_a_shear_is_flagged_and_a_singular_affine_refused(tmp_path: Path) -> None:
    sheared = oblique_affine()
    sheared[:3, 2] += 0.3 * sheared[:3, 1]
    assert check_header(save(tmp_path / "a.nii.gz", affine=sheared, qform=0)).flags == ("sheared",)
    with pytest.raises(GeometryError, match="expected an affine with an inverse"):
        check_header(_singular(tmp_path / "c.nii"))


def _singular(path: Path) -> Path:
    save(path)
    content = bytearray(path.read_bytes())
    content[312:328] = content[296:312]  # the third row of the sform becomes the second
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "3 NaN and 0 infinite of 378"), (-np.inf, "0 NaN and 3 infinite of 378")]
)
def test_voxels_that_are_not_finite_are_counted(tmp_path: Path, value: float, reason: str) -> None:
    data = voxels().astype(np.float32)
    data.flat[[0, 7, 100]] = value
    with pytest.raises(IntensityError, match=reason):
        read_nifti(save(tmp_path / "a.nii.gz", data))


def test_what_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntensityError, match="1 infinite"):
        read_nifti(save(tmp_path / "a.nii.gz", np.array([[[1.0, 1e300]]])))


def test_a_constant_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntensityError, match="120 voxels that are all 5"):
        read_nifti(save(tmp_path / "a.nii.gz", np.full((4, 5, 6), 5, np.int16)))
