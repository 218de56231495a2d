"""Files in and out: where voxels lie in space, what is refused, what a mask inherits."""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from PIL import Image

from tutelage.archive import formats
from tutelage.errors import ArchiveError
from tutelage.geometry import Grid

SHAPE = (5, 6, 7)
"""Voxels along the file's own axes."""


def rotation(*degrees: float) -> NDArray[np.float64]:
    """Turn around x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def affine(
    directions: NDArray[np.float64], spacing: tuple[float, ...] = (0.7, 1.3, 3.1)
) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = directions * np.asarray(spacing)
    matrix[:3, 3] = (-12.5, 40.25, 7.0)
    return matrix


AFFINES = {
    "RAS": affine(np.eye(3)),
    "LPS": affine(np.diag([-1.0, -1.0, 1.0])),
    "upside down": affine(np.diag([1.0, 1.0, -1.0])),
    "sagittal": affine(np.eye(3)[[2, 0, 1]]),
    "coronal, flipped": affine(np.eye(3)[[0, 2, 1]] * [1.0, -1.0, -1.0]),
    "oblique": affine(rotation(17, -9, 31)),
    "oblique, sagittal, flipped": affine(rotation(-20, 12, 8) @ np.eye(3)[[2, 0, 1]] * [-1.0, 1.0, -1.0]),
    "mirrored": affine(rotation(5, 25, -14) * [-1.0, 1.0, 1.0]),
}
TURNED = pytest.mark.parametrize("matrix", AFFINES.values(), ids=AFFINES.keys())


def numbered(shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    """Make voxels that all differ."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def save_nifti(
    path: Path, data: NDArray[Any], matrix: NDArray[np.float64], cls: Any = nib.Nifti1Image
) -> Path:
    image = cls(data, matrix)
    image.set_qform(matrix, code=1)
    image.set_sform(matrix, code=2)
    nib.save(image, path)
    return path


def save_nrrd(path: Path, data: NDArray[Any], matrix: NDArray[np.float64]) -> Path:
    """Write with SimpleITK, whose world is LPS and whose arrays run (k, j, i)."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(data.transpose(2, 1, 0))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path))
    return path


def seen_by_itk(path: Path, *voxels_ijk: tuple[int, ...]) -> list[tuple[float, NDArray[np.float64]]]:
    """Return values of voxels and their places in RAS+ millimeters, as SimpleITK has them."""
    image = SimpleITK.ReadImage(str(path))
    seen = []
    for ijk in voxels_ijk:
        x, y, z = image.TransformIndexToPhysicalPoint([int(i) for i in ijk])
        seen.append((float(image.GetPixel([int(i) for i in ijk])), np.array([-x, -y, z])))
    return seen


def assert_same_world(path: Path) -> None:
    """Every value lies at the same millimeters by us and by SimpleITK."""
    volume = formats.read_image(path)
    image_DHW = volume.image_CDHW[0]
    for value, ras in seen_by_itk(path, *np.ndindex(*SHAPE)):
        dhw = np.argwhere(image_DHW == value)
        assert len(dhw) == 1
        ours = volume.grid.matrix @ [*dhw[0], 1.0]
        assert np.abs(ours[:3] - ras).max() < 1e-3


@TURNED
def test_a_nifti_lies_where_itk_puts_it(tmp_path: Path, matrix: NDArray[np.float64]) -> None:
    assert_same_world(save_nifti(tmp_path / "a.nii.gz", numbered(), matrix))


@TURNED
def test_a_nrrd_lies_where_itk_puts_it(tmp_path: Path, matrix: NDArray[np.float64]) -> None:
    assert_same_world(save_nrrd(tmp_path / "a.nrrd", numbered(), matrix))


@TURNED
def test_our_axes_run_to_head_back_and_left(tmp_path: Path, matrix: NDArray[np.float64]) -> None:
    grid = formats.read_image(save_nifti(tmp_path / "a.nii", numbered(), matrix)).grid
    d, h, w = grid.matrix[:3, :3].T
    # Of a turned volume each axis still points mostly where it should, and no two swap.
    assert d[2] > 0
    assert h[1] < 0
    assert w[0] < 0
    assert [int(np.abs(axis).argmax()) for axis in (d, h, w)] == [2, 1, 0]
    assert sorted(grid.spacing) == pytest.approx([0.7, 1.3, 3.1], abs=1e-5)


@TURNED
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2", ".nrrd"])
def test_what_we_write_itk_and_we_read_alike(
    tmp_path: Path, matrix: NDArray[np.float64], suffix: str
) -> None:
    grid = formats.read_image(save_nifti(tmp_path / "source.nii", numbered(), matrix)).grid
    image_DHW = numbered(grid.shape)
    path = tmp_path / f"a{suffix}"
    formats.write_image(path, image_DHW, grid)
    volume = formats.read_image(path)
    np.testing.assert_array_equal(volume.image_CDHW[0], image_DHW)
    assert volume.grid.difference(grid, 1e-3) is None
    if suffix != ".nii.bz2":
        [(value, ras)] = seen_by_itk(path, (1, 2, 3))
        assert value == image_DHW[3, 2, 1]
        np.testing.assert_allclose(ras, (grid.matrix @ [3, 2, 1, 1])[:3], atol=1e-3)


@TURNED
@pytest.mark.parametrize("source", ["nifti", "nrrd"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_mask_lies_on_its_image_in_the_images_own_axes(
    tmp_path: Path, matrix: NDArray[np.float64], source: str, suffix: str
) -> None:
    if source == "nifti":
        image = save_nifti(tmp_path / "image.nii.gz", numbered(), matrix)
    else:
        image = save_nrrd(tmp_path / "image.nrrd", numbered(), matrix)
    volume = formats.read_image(image)
    mask_DHW = (volume.image_CDHW[0] > 99).astype(np.uint8) * 3
    path = tmp_path / f"mask{suffix}"
    formats.write_mask(path, mask_DHW, volume)
    np.testing.assert_array_equal(formats.read_label(path, volume.grid, 3), mask_DHW)
    written, original = SimpleITK.ReadImage(str(path)), SimpleITK.ReadImage(str(image))
    assert written.GetSize() == original.GetSize()
    assert written.GetPixelID() == SimpleITK.sitkUInt8
    np.testing.assert_allclose(written.GetDirection(), original.GetDirection(), atol=1e-5)
    np.testing.assert_allclose(written.GetOrigin(), original.GetOrigin(), atol=1e-4)
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(written), (SimpleITK.GetArrayFromImage(original) > 99) * 3
    )


@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image], ids=["NIfTI 1", "NIfTI 2"])
def test_a_mask_keeps_both_transforms_with_their_codes(tmp_path: Path, cls: Any) -> None:
    scanner, template = AFFINES["oblique"], AFFINES["LPS"]
    image = cls(numbered(), None)
    image.set_qform(scanner, code=1)
    image.set_sform(template, code=4)
    image.header.set_xyzt_units("mm", "sec")
    image.header["scl_slope"], image.header["scl_inter"] = 2, -100
    nib.save(image, tmp_path / "image.nii.gz")
    volume = formats.read_image(tmp_path / "image.nii.gz")
    formats.write_mask(tmp_path / "mask.nii.gz", np.ones(volume.grid.shape, np.uint8), volume)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert type(mask) is cls
    assert (int(mask.header["qform_code"]), int(mask.header["sform_code"])) == (1, 4)
    np.testing.assert_allclose(mask.get_qform(), scanner, atol=1e-4)
    np.testing.assert_allclose(mask.get_sform(), template, atol=1e-5)
    assert mask.get_data_dtype() == np.uint8
    assert np.asarray(mask.dataobj).max() == 1
    assert mask.header.get_xyzt_units() == ("mm", "sec")


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_types_and_byte_orders_are_read(tmp_path: Path, dtype: str, order: str) -> None:
    data = (numbered() % 100).astype(np.dtype(f"{order}{dtype}"))
    header = nib.Nifti1Header(endianness=order)
    image = nib.Nifti1Image(data, AFFINES["LPS"], header)
    image.set_data_dtype(data.dtype)
    nib.save(image, tmp_path / "a.nii")
    volume = formats.read_image(tmp_path / "a.nii")
    assert volume.image_CDHW.dtype == np.float32
    np.testing.assert_array_equal(volume.image_CDHW[0], data.transpose(2, 1, 0))
    formats.write_mask(tmp_path / "m.nii", volume.image_CDHW[0].astype(np.uint8), volume)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "m.nii").dataobj), data)


def test_stored_values_are_scaled_as_the_header_says(tmp_path: Path) -> None:
    image = nib.Nifti1Image(numbered(), AFFINES["LPS"])
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "a.nii")
    expected = nib.load(tmp_path / "a.nii").get_fdata().transpose(2, 1, 0)
    np.testing.assert_allclose(formats.read_image(tmp_path / "a.nii").image_CDHW[0], expected, rtol=1e-6)


@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image], ids=["NIfTI 1", "NIfTI 2"])
def test_a_fourth_dimension_is_channels(tmp_path: Path, cls: Any) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", numbered((5, 6, 7, 2)), AFFINES["LPS"], cls)
    volume = formats.read_image(path)
    assert volume.image_CDHW.shape == (2, 7, 6, 5)
    assert formats.header(path).channels == 2
    np.testing.assert_array_equal(volume.image_CDHW[1, 4, 3, 2], numbered((5, 6, 7, 2))[2, 3, 4, 1])
    formats.write_mask(tmp_path / "m.nii.gz", np.zeros(volume.grid.shape, np.uint8), volume)
    assert nib.load(tmp_path / "m.nii.gz").shape == SHAPE


def test_channels_of_a_nrrd_come_first_in_the_file_and_with_us(tmp_path: Path) -> None:
    image_CDHW = numbered((3, 4, 5, 6))
    grid = Grid.from_spacing((4, 5, 6), (3.0, 1.0, 0.5))
    formats.write_image(tmp_path / "a.nrrd", image_CDHW, grid)
    np.testing.assert_array_equal(formats.read_image(tmp_path / "a.nrrd").image_CDHW, image_CDHW)
    seen = SimpleITK.ReadImage(str(tmp_path / "a.nrrd"))
    assert seen.GetNumberOfComponentsPerPixel() == 3
    assert seen.GetPixel(1, 2, 3) == tuple(image_CDHW[:, 3, 2, 1])


NRRD_SPACES = {
    "left-posterior-superior": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "RAS": (1, 1, 1),
}


@pytest.mark.parametrize(("space", "signs"), NRRD_SPACES.items(), ids=NRRD_SPACES.keys())
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_spaces_and_encodings_of_nrrd(
    tmp_path: Path, space: str, signs: tuple[int, ...], encoding: str
) -> None:
    import nrrd

    header = {
        "space": space,
        "space directions": np.diag([0.5, 1.0, 2.0]),
        "space origin": [10.0, 20.0, 30.0],
        "encoding": encoding,
    }
    nrrd.write(str(tmp_path / "a.nrrd"), numbered(), header)
    volume = formats.read_image(tmp_path / "a.nrrd")
    dhw = np.argwhere(volume.image_CDHW[0] == numbered()[0, 0, 0])[0]
    np.testing.assert_allclose((volume.grid.matrix @ [*dhw, 1])[:3], np.multiply([10, 20, 30], signs))
    formats.write_mask(tmp_path / "m.nrrd", np.zeros(volume.grid.shape, np.uint8), volume)
    assert formats.header(tmp_path / "m.nrrd").grid.difference(volume.grid) is None
    assert nrrd.read_header(str(tmp_path / "m.nrrd"))["space"].lower() == space.lower()


def test_a_nrrd_without_a_space_is_taken_as_itk_takes_it(tmp_path: Path) -> None:
    import nrrd

    nrrd.write(str(tmp_path / "a.nrrd"), numbered(), {"spacings": [0.5, 1.0, 2.0]})
    assert_same_world(tmp_path / "a.nrrd")


def test_lengths_in_micrometers_become_millimeters(tmp_path: Path) -> None:
    image = nib.Nifti1Image(numbered(), np.diag([-500.0, -1000.0, 2000.0, 1.0]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    assert formats.header(tmp_path / "a.nii").grid.spacing == pytest.approx((2.0, 1.0, 0.5))
    assert_same_world(tmp_path / "a.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nrrd"])
def test_a_flat_scan_is_one_slice(tmp_path: Path, suffix: str) -> None:
    image = SimpleITK.GetImageFromArray(numbered((6, 5)))
    image.SetSpacing([0.5, 2.0])
    SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"))
    volume = formats.read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(volume.image_CDHW[0, 0], numbered((6, 5)))
    assert volume.grid.spacing[1:] == pytest.approx((2.0, 0.5))
    formats.write_mask(tmp_path / f"m{suffix}", np.ones((1, 6, 5), np.uint8), volume)
    assert formats.read_label(tmp_path / f"m{suffix}", volume.grid, 1).shape == (1, 6, 5)


PICTURES = {
    "gray PNG": (".png", "L", 1),
    "color PNG": (".png", "RGB", 3),
    "PNG with opacity": (".png", "RGBA", 3),
    "color JPEG": (".jpg", "RGB", 3),
    "gray JPEG": (".jpeg", "L", 1),
}


@pytest.mark.parametrize(("suffix", "mode", "channels"), PICTURES.values(), ids=PICTURES.keys())
def test_pictures_are_volumes_of_one_slice(tmp_path: Path, suffix: str, mode: str, channels: int) -> None:
    picture = Image.new(mode, (5, 7))
    picture.paste(Image.new(mode, (5, 3), "white"), (0, 0))
    picture.save(tmp_path / f"a{suffix}")
    volume = formats.read_image(tmp_path / f"a{suffix}")
    assert volume.image_CDHW.shape == (channels, 1, 7, 5)
    assert formats.header(tmp_path / f"a{suffix}").channels == channels
    assert volume.image_CDHW[:, 0, 0].min() > 200
    assert volume.image_CDHW[:, 0, 6].max() < 50


def test_a_picture_of_16_bits_keeps_them(tmp_path: Path) -> None:
    pixels = np.array([[0, 1000], [40000, 65535]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(formats.read_image(tmp_path / "a.png").image_CDHW[0, 0], pixels)


@pytest.mark.parametrize("top", [9, 300], ids=["8 bits", "16 bits"])
def test_a_mask_of_a_picture_is_a_png(tmp_path: Path, top: int) -> None:
    Image.new("RGB", (5, 7)).save(tmp_path / "a.jpg")
    volume = formats.read_image(tmp_path / "a.jpg")
    mask_DHW = np.zeros((1, 7, 5), np.uint16 if top > 255 else np.uint8)
    mask_DHW[0, 2, 3] = top
    formats.write_mask(tmp_path / "m.png", mask_DHW, volume.native)
    np.testing.assert_array_equal(formats.read_label(tmp_path / "m.png", volume.grid, top), mask_DHW)
    assert np.asarray(Image.open(tmp_path / "m.png"))[2, 3] == top


def test_black_and_white_is_one_structure(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6), np.uint8)
    pixels[1, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "gray.png")
    Image.fromarray(pixels).convert("1").save(tmp_path / "bits.png")
    grid = Grid.from_spacing((1, 4, 6), (1, 1, 1))
    for name in ("gray.png", "bits.png"):
        np.testing.assert_array_equal(formats.read_label(tmp_path / name, grid, 1)[0], pixels // 255)
    with pytest.raises(ArchiveError, match="values run from 0 to 255, expected 0 to 2"):
        formats.read_label(tmp_path / "gray.png", grid, 2)


def test_a_palettes_indices_are_the_label(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "m.png")
    grid = Grid.from_spacing((1, 2, 2), (1, 1, 1))
    assert formats.read_label(tmp_path / "m.png", grid, 2).tolist() == [[[0, 1], [2, 1]]]


# --- bytes --------------------------------------------------------------------------------


def test_bytes_are_read_and_written_like_files(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", numbered(), AFFINES["oblique"])
    from_file = formats.read_image(path)
    from_bytes = formats.read_image_bytes(path.read_bytes(), "a.nii.gz")
    np.testing.assert_array_equal(from_file.image_CDHW, from_bytes.image_CDHW)
    assert (from_file.grid, from_file.native, from_file.digest) == (
        from_bytes.grid,
        from_bytes.native,
        from_bytes.digest,
    )
    mask_DHW = np.ones(from_file.grid.shape, np.uint8)
    formats.write_mask(tmp_path / "m.nii.gz", mask_DHW, from_file)
    assert (tmp_path / "m.nii.gz").read_bytes() == formats.mask_bytes(mask_DHW, from_bytes, ".nii.gz")


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "a.nii.bz2", "a.nrrd"):
        formats.write_image(tmp_path / name, numbered(), Grid.from_spacing(SHAPE, (1, 1, 1)))
        expected = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:16]
        assert formats.read_image(tmp_path / name).digest == expected


def test_the_same_voxels_make_the_same_bytes(tmp_path: Path) -> None:
    grid = Grid.from_spacing(SHAPE, (1, 1, 1))
    for suffix in (".nii.gz", ".nrrd", ".nii.bz2"):
        formats.write_image(tmp_path / f"a{suffix}", numbered(), grid)
        formats.write_image(tmp_path / f"b{suffix}", numbered(), grid)
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_a_file_of_several_gzip_parts_is_whole(tmp_path: Path) -> None:
    save_nifti(tmp_path / "a.nii", numbered(), AFFINES["LPS"])
    data = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(data[:400]) + gzip.compress(data[400:]))
    assert formats.header(tmp_path / "a.nii.gz").grid.shape == SHAPE[::-1]
    np.testing.assert_array_equal(
        formats.read_image(tmp_path / "a.nii.gz").image_CDHW[0], numbered().transpose(2, 1, 0)
    )
