"""Photos made here in every mode, orientation and state of decay, read back."""

import io
import struct
import subprocess
import sys
import zlib
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from pipelines.errors import PhotoError
from pipelines.resources.photo_reader import Photo, read_photo

ORIENTATION, DATE_TIME, EXIF_IFD, DATE_TIME_ORIGINAL = 0x0112, 0x0132, 0x8769, 0x9003

# How to store a picture so that this orientation makes it upright again.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """A smooth picture without any symmetry."""
    y, x = np.mgrid[:height, :width]
    red, green, blue = x * 255 // (width - 1), y * 255 // (height - 1), (x + 2 * y) * 255 // (width + 2 * height)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def encoded(image: Image.Image, image_format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def read(data: bytes, name: str = "photo.jpg", max_megapixels: float = 150) -> Photo:
    return read_photo(data, name, max_megapixels)


def difference(photo: Photo, expected: Image.Image) -> float:
    """The mean absolute difference of the pixels, after the shape was found to be the same."""
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.shape == (expected.height, expected.width, 3)
    return float(np.abs(photo.pixels.astype(int) - np.asarray(expected.convert("RGB"), dtype=int)).mean())


def refusal(data: bytes, name: str = "photo.jpg", max_megapixels: float = 150) -> str:
    with pytest.raises(PhotoError) as caught:
        read(data, name, max_megapixels)
    message = str(caught.value)
    assert message.startswith(name)
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("mode", "image_format", "tolerance"),
    [
        ("RGB", "PNG", 0),
        ("RGB", "BMP", 0),
        ("RGB", "TIFF", 0),
        ("RGB", "WEBP", 6),
        ("RGB", "JPEG", 6),
        ("L", "PNG", 0),
        ("L", "JPEG", 3),
        ("P", "PNG", 0),
        ("P", "GIF", 0),
        ("1", "PNG", 0),
        ("1", "TIFF", 0),
        ("CMYK", "JPEG", 6),
        ("CMYK", "TIFF", 0),
        ("YCbCr", "TIFF", 2),
        ("YCbCr", "JPEG", 6),
    ],
)
def test_every_mode_becomes_rgb(mode, image_format, tolerance):
    image = picture().convert(mode)
    assert difference(read(encoded(image, image_format)), image.convert("RGB")) <= tolerance


def test_a_progressive_jpeg_is_read():
    assert difference(read(encoded(picture(), "JPEG", progressive=True)), picture()) <= 6


@pytest.mark.parametrize("with_profile", [False, True])
def test_lab_becomes_rgb(with_profile):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(picture(), srgb, lab, outputMode="LAB")
    if not with_profile:
        del image.info["icc_profile"]
    # Whole numbers of Lab are coarser than those of sRGB.
    assert difference(read(encoded(image, "TIFF")), picture()) <= 3


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_deep_gray_is_scaled_not_cut_off(image_format):
    gray = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = read(encoded(Image.fromarray(gray), image_format)).pixels
    assert np.array_equal(pixels[:, :, 0], np.rint(gray / 257))
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 2])


def test_deep_gray_of_a_portable_graymap_is_scaled():
    gray = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    data = b"P5 64 64 65535\n" + gray.astype(">u2").tobytes()
    assert np.abs(read(data).pixels[:, :, 0] - gray / 257).max() <= 1


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_deep_colour_is_scaled_not_cut_off(extension):
    rgb = np.asarray(picture()).astype(np.uint16) * 257
    data = cv2.imencode(extension, rgb[:, :, ::-1])[1].tobytes()
    assert difference(read(data), picture()) <= 1


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_floating_point_gray_is_scaled_by_its_white(white):
    gray = (np.asarray(picture().convert("L")) / np.float32(255)).astype(np.float32)
    gray[0, 0], gray[0, 1], gray[0, 2] = 1, np.nan, -1
    pixels = read(encoded(Image.fromarray(gray * np.float32(white)), "TIFF")).pixels
    assert pixels[0, 0].tolist() == [255] * 3
    assert pixels[0, 1].tolist() == pixels[0, 2].tolist() == [0] * 3
    assert np.abs(pixels[1:, :, 0] / 255 - gray[1:]).max() < 0.003


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_becomes_white(mode):
    image = picture().convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 24, 32))
    image.putalpha(alpha)
    pixels = read(encoded(image.convert(mode), "PNG" if mode != "PA" else "TIFF")).pixels
    assert (pixels[:, :24] == 255).all()
    assert (pixels[:, 24:] < 255).any()


def test_a_transparent_palette_entry_becomes_white():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.putpixel((0, 0), 0)
    pixels = read(encoded(image, "PNG", transparency=0)).pixels
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [200, 10, 10]


def test_a_colour_profile_is_honoured():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Red and blue primaries change places, and the name must not say sRGB any more.
    swapped = profile.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "BGRs".encode("utf-16-be"))
    photo = read(encoded(Image.new("RGB", (8, 8), (255, 0, 0)), "PNG", icc_profile=swapped))
    assert photo.pixels[4, 4].tolist() == pytest.approx([0, 0, 255], abs=3)
    assert photo.notes == ()


@pytest.mark.parametrize(
    "profile", [b"not a profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()]
)
def test_a_useless_colour_profile_is_noted_and_ignored(profile):
    image = picture()
    photo = read(encoded(image, "PNG", icc_profile=profile))
    assert difference(photo, image) == 0
    assert len(photo.notes) == 1


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_turned_upright(orientation, image_format):
    method = STORED[orientation]
    stored = picture() if method is None else picture().transpose(method)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(image_format, {})
    photo = read(encoded(stored, image_format, exif=exif, **options))
    assert difference(photo, picture()) <= (2 if image_format == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert difference(read(encoded(picture(), "PNG", exif=exif)), picture()) == 0


def dated(original: str | None, changed: str | None) -> bytes:
    exif = Image.Exif()
    if changed is not None:
        exif[DATE_TIME] = changed
    if original is not None:
        exif.get_ifd(EXIF_IFD)[DATE_TIME_ORIGINAL] = original
    return encoded(picture(), "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("original", "changed", "taken_at"),
    [
        ("2024:09:02 10:00:05", "2025:01:01 00:00:00", datetime(2024, 9, 2, 10, 0, 5)),
        (None, "2025:01:01 00:00:00", datetime(2025, 1, 1)),
        ("0000:00:00 00:00:00", "2025:01:01 00:00:00", datetime(2025, 1, 1)),
        ("2024:13:41 10:00:05", None, None),
        ("last Tuesday", "", None),
        (None, None, None),
    ],
)
def test_the_date_is_when_the_photo_was_taken(original, changed, taken_at):
    assert read(dated(original, changed)).taken_at == taken_at


@given(noise=st.binary(max_size=200))
def test_bad_exif_never_fails_a_photo(noise):
    photo = read(encoded(picture(), "JPEG", exif=b"Exif\0\0" + noise))
    assert sorted(photo.pixels.shape[:2]) == [32, 48]


def test_the_content_decides_not_the_extension():
    assert difference(read(encoded(picture(), "PNG"), "photo.jpg"), picture()) == 0


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for image_format in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
        assert read(data).pixels[4, 4].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_what_follows_a_photo_does_not_matter():
    data = encoded(picture(), "JPEG")
    assert np.array_equal(read(data + b"\xff\xda junk" * 100).pixels, read(data).pixels)


def test_a_tiff_compressed_with_webp_is_read():
    image = picture()
    strips = [encoded(image.crop((0, top, 48, top + 16)), "WEBP", lossless=True) for top in (0, 16)]
    start = 8 + 2 + 9 * 12 + 4
    lists = start + 2 * 3 * 2  # room for BitsPerSample
    offsets = [lists + 16, lists + 16 + len(strips[0])]
    tags = [
        (256, 4, 1, 48),
        (257, 4, 1, 32),
        (258, 3, 3, start),
        (259, 3, 1, 50001),
        (262, 3, 1, 2),
        (273, 4, 2, lists),
        (277, 3, 1, 3),
        (278, 4, 1, 16),
        (279, 4, 2, lists + 8),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    values = struct.pack("<6H", 8, 8, 8, 0, 0, 0) + struct.pack("<4I", *offsets, *map(len, strips))
    data = b"II*\0" + struct.pack("<I", 8) + directory + values + b"".join(strips)
    assert difference(read(data), image) == 0


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_a_cut_off_photo_is_refused_or_complete(image_format, share):
    data = encoded(picture(), image_format)
    try:
        photo = read(data[: int(share * len(data))])
    except PhotoError:
        return
    assert np.array_equal(photo.pixels, read(data).pixels)


def test_a_cut_off_jpeg_is_refused_whatever_other_packages_set(monkeypatch):
    data = encoded(picture(400, 300), "JPEG")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert "cut off" in refusal(data[: len(data) // 2])


def test_a_damaged_png_is_refused():
    data = bytearray(encoded(Image.effect_noise((64, 64), 50), "PNG"))
    data[len(data) // 2] ^= 0xFF
    assert "damaged" in refusal(bytes(data))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8))
def test_damage_gives_a_photo_or_a_photo_error(image_format, changes):
    data = bytearray(encoded(picture(), image_format))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        photo = read(bytes(data), max_megapixels=1)
    except PhotoError:
        return
    assert photo.pixels.ndim == 3


@given(data=st.binary(max_size=100))
def test_noise_is_refused(data):
    refusal(data)


def test_an_empty_file_is_named_as_such():
    assert "0 bytes" in refusal(b"", "class/s1/IMG 7.jpg")


@pytest.mark.parametrize(
    "data", [b"hello" * 50, b"<html><body>no</body></html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_not_a_photo_is_refused(data):
    assert "not a picture" in refusal(data)


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A gray PNG that claims a size, whatever it holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_from_its_header():
    assert "more than the 150 megapixels" in refusal(png(20000, 20000))
    assert "cut off" in refusal(png(12000, 9000))  # large enough to be let through to the decoder


def test_the_limit_itself_is_allowed():
    data = encoded(Image.new("RGB", (100, 100)), "PNG")
    assert read(data, max_megapixels=0.01).pixels.shape == (100, 100, 3)
    assert "0.0099 megapixels" in refusal(data, max_megapixels=0.0099)


def test_the_limit_of_one_call_is_nobody_else_s():
    data = encoded(Image.new("RGB", (2000, 1000)), "PNG")
    assert "megapixels" in refusal(data, max_megapixels=0.1)
    assert Image.open(io.BytesIO(data)).size == (2000, 1000)


def test_the_limit_may_be_higher_than_pillow_s_own():
    assert "cut off" in refusal(png(16000, 12000), max_megapixels=200)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_a_bomb_costs_no_memory(tmp_path):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(12000, 20000, bytes(12001 * 20000)))
    # Not ru_maxrss, which a process inherits from the one that started it.
    code = """
import re, sys
from pathlib import Path
import PIL.Image
from pipelines.errors import PhotoError
from pipelines.resources.photo_reader import read_photo
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
try:
    read_photo(Path(sys.argv[1]).read_bytes(), "bomb.png", 150)
except PhotoError:
    sys.exit(0 if peak() - before < 32 * 1024 else f"grew by {peak() - before} kB")
sys.exit("not refused")
"""
    subprocess.run([sys.executable, "-c", code, str(bomb)], check=True)
