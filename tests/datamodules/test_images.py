"""Pictures come back from disk as they went there, and what is not a picture is refused in one sentence."""

import io

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps, TiffImagePlugin

from datamodules.images import SUFFIXES, Picture, decode, read_image, write_image

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RNG = np.random.default_rng(0)


def pixels(channels: int, dtype: type, height: int = 13, width: int = 7) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)


def exif(**tags: object) -> bytes:
    block = Image.Exif()
    for name, value in tags.items():
        block[ExifTags.Base[name]] = value
    return block.tobytes()


def png(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".webp", ".bmp"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossless_formats_return_what_they_were_given_or_refuse(tmp_path, suffix, channels, dtype):
    picture, path = Picture(pixels(channels, dtype), ICC, exif(Artist="A. Newton")), tmp_path / f"x{suffix}"
    deep, alpha, tiff = dtype is np.uint16, channels in (2, 4), suffix.startswith(".tif")
    if (deep and suffix in (".webp", ".bmp")) or (alpha and suffix == ".bmp") or (deep and channels == 2 and tiff):
        with pytest.raises(ValueError, match=rf"{suffix}.*: write to (one of )?\.png"):
            write_image(path, picture)
        return
    write_image(path, picture)
    back = read_image(path)
    assert back.array.dtype == dtype
    if suffix == ".webp" and channels < 3:  # WebP knows no gray
        np.testing.assert_array_equal(back.array[..., :3], np.repeat(picture.array[..., :1], 3, 2))
        np.testing.assert_array_equal(back.array[..., 3:], picture.array[..., 1:])
    else:
        np.testing.assert_array_equal(back.array, picture.array)
    if suffix != ".bmp":
        assert back.icc == ICC
        with Image.open(path) as other:
            assert other.getexif()[ExifTags.Base.Artist] == "A. Newton"
        assert b"A. Newton" in (back.exif or b"")


def test_jpeg_keeps_profile_and_exif_and_stays_close(tmp_path):
    smooth = np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], 64, 1).repeat(3, 2)
    write_image(tmp_path / "x.jpg", Picture(smooth, ICC, exif(Artist="A. Newton")))
    back = read_image(tmp_path / "x.jpg")
    assert np.abs(back.array.astype(int) - smooth).max() <= 2
    assert (back.icc, back.exif) == (ICC, exif(Artist="A. Newton"))


def test_sixteen_bit_files_are_readable_by_others(tmp_path):
    array = pixels(3, np.uint16)
    for suffix in (".png", ".tif"):
        write_image(tmp_path / f"x{suffix}", array)
        other = cv2.imread(str(tmp_path / f"x{suffix}"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(other[..., ::-1], array)
        with Image.open(tmp_path / f"x{suffix}") as image:
            assert np.asarray(image).shape == (13, 7, 3)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_camera_settings_inside_exif_are_kept(tmp_path, suffix, dtype):
    if (suffix, dtype) == (".jpg", np.uint16):
        return  # refused, tested above
    block = Image.Exif()
    block[ExifTags.IFD.Exif] = {ExifTags.Base.ISOSpeedRatings: 1600}
    write_image(tmp_path / f"x{suffix}", Picture(pixels(3, dtype), None, block.tobytes()))
    write_image(tmp_path / f"y{suffix}", read_image(tmp_path / f"x{suffix}"))
    with Image.open(tmp_path / f"y{suffix}") as image:
        assert image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 1600


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_and_the_rest_of_exif_kept(tmp_path, orientation):
    data = png(pixels(3, np.uint8), exif=exif(Orientation=orientation, Artist="A. Newton"))
    picture = read_image(data)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(picture.array, np.asarray(upright))
    write_image(tmp_path / "x.png", picture)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png").array, picture.array)
    assert b"A. Newton" in (read_image(tmp_path / "x.png").exif or b"")


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description dc:title="Gray\xc3\xbc" tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_xmp_is_kept_without_its_orientation(tmp_path, suffix, dtype):
    if dtype is np.uint16 and suffix in (".jpg", ".webp"):
        return  # refused, tested above
    write_image(tmp_path / f"x{suffix}", Picture(pixels(3, dtype), xmp=XMP))
    picture = read_image(tmp_path / f"x{suffix}")
    assert picture.array.shape == (7, 13, 3)  # turned, as Pillow turns it: there is no EXIF to say otherwise
    assert picture.xmp == XMP.replace(b'tiff:Orientation="6"', b"")
    write_image(tmp_path / f"y{suffix}", picture)
    again = read_image(tmp_path / f"y{suffix}")
    assert (again.array.shape, again.xmp) == ((7, 13, 3), picture.xmp)


def test_eight_bits_of_sixteen_are_the_nearest():
    array = np.array([[[0, 128, 129], [32768, 65535, 257]]], np.uint16)
    assert Picture(array).reduced().array.tolist() == [[[0, 0, 1], [128, 255, 1]]]


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (1, np.uint16)])  # 16-bit colour: above
def test_orientation_of_tiff_is_applied_once(channels, dtype):
    array, buffer = pixels(channels, dtype), io.BytesIO()
    head = TiffImagePlugin.ImageFileDirectory_v2()
    head[ExifTags.Base.Orientation] = 6
    Image.fromarray(array if channels == 3 else array[..., 0]).save(buffer, "TIFF", tiffinfo=head)
    expected = np.rot90(array, -1)
    np.testing.assert_array_equal(read_image(buffer.getvalue()).array, expected)
    np.testing.assert_array_equal(read_image(buffer.getvalue(), box=(1, 2, 3, 4)).array, expected[1:4, 2:6])


def test_sixteen_bit_orientation_is_applied_too(tmp_path):
    picture = Picture(pixels(3, np.uint16), None, exif(Orientation=6))
    write_image(tmp_path / "x.png", picture)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png").array, np.rot90(picture.array, -1))


def test_palettes_bilevel_and_transparency_become_plain_channels():
    colour = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    palette = Image.fromarray(colour).quantize(2)
    plain, holed = io.BytesIO(), io.BytesIO()
    palette.save(plain, "PNG")
    palette.save(holed, "PNG", transparency=palette.getpixel((0, 0)))
    np.testing.assert_array_equal(read_image(plain.getvalue()).array, colour)
    assert read_image(holed.getvalue()).array[0, :, 3].tolist() == [0, 255]
    bilevel = np.array([[True, False]])
    assert read_image(png(bilevel)).array[..., 0].tolist() == [[255, 0]]


def test_cmyk_becomes_rgb_without_the_profile_that_described_cmyk():
    buffer = io.BytesIO()
    Image.new("CMYK", (4, 4)).save(buffer, "JPEG", icc_profile=ICC)
    picture = read_image(buffer.getvalue())
    assert picture.array.shape == (4, 4, 3)
    assert picture.icc is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_to_rgb_and_from_rgb_are_inverse(dtype, channels):
    picture = Picture(pixels(channels, dtype), ICC)
    back = picture.from_rgb(picture.to_rgb())
    np.testing.assert_array_equal(back.array, picture.array)
    assert back.icc == ICC


def test_decode_gives_uint8_rgb_for_every_kind():
    gray16 = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    assert decode(png(gray16))[0, :, 1].tolist() == [0, 0, 1, 128, 255]
    rgba = pixels(4, np.uint8)
    np.testing.assert_array_equal(decode(png(rgba)), rgba[..., :3])
    assert decode(png(pixels(1, np.uint8, 5, 3)[..., 0])).shape == (5, 3, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow warns before it gives up on half a TIFF
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_cut_in_half_is_named_and_refused(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    write_image(path, pixels(3, np.uint8, 40, 40))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"cut{suffix}: .*(cut off|not an image)"):
        read_image(path)


def test_what_is_not_an_image_is_named_and_refused(tmp_path):
    (tmp_path / "notes.png").write_text("dear diary")
    with pytest.raises(ValueError, match=r"notes\.png: not an image: give a file such as \.png"):
        read_image(tmp_path / "notes.png")
    with pytest.raises(ValueError, match=r"0001\.hq\.png: not an image"):
        decode(b"", "0001.hq.png")
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="a folder, not an image"):
        read_image(tmp_path)


def test_several_pictures_in_a_file_and_32_bit_samples_are_refused():
    frames, deep = io.BytesIO(), io.BytesIO()
    still = Image.new("RGB", (4, 4))
    still.save(frames, "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")])
    Image.new("F", (4, 4)).save(deep, "TIFF")
    with pytest.raises(ValueError, match="holds 2 pictures"):
        read_image(frames.getvalue())
    with pytest.raises(ValueError, match="32-bit"):
        read_image(deep.getvalue())


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    write_image(path, pixels(3, np.uint8))
    before = path.read_bytes()

    def interrupted(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_image(path, pixels(3, np.uint8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_formats_and_arrays_that_are_no_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown image format '\.xyz': end the name with one of \.png"):
        write_image(tmp_path / "a.xyz", pixels(3, np.uint8))
    with pytest.raises(ValueError, match="float32"):
        write_image(tmp_path / "a.png", np.zeros((2, 2, 3), np.float32))
