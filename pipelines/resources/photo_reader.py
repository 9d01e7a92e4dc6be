"""Reads photos of any common kind into upright 8-bit RGB, or says in one sentence why one cannot be used."""

import io
import warnings
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PhotoError

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

# Pillow's other decoders are left out on purpose: its EPS reader, for one, would run Ghostscript on whatever a file
# named .jpg contains. (JPEG covers the multi-picture files of phones.)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")

_ORIENTATION, _DATE_TIME, _EXIF_IFD, _DATE_TIME_ORIGINAL = 0x0112, 0x0132, 0x8769, 0x9003
_TIFF_COMPRESSION, _TIFF_WEBP = 259, 50001
_WHITE = (255, 255, 255, 255)
_STRIP = 256  # rows converted at a time


@dataclass(frozen=True)
class Photo:
    """A decoded photo.

    pixels: (H, W, 3) uint8 RGB, upright (EXIF orientation applied), transparent parts on white.
    taken_at: the camera's local time from EXIF (DateTimeOriginal, else DateTime), None without a valid one.
    notes: sentences about metadata that was there but had to be ignored.
    """

    pixels: NDArray[np.uint8]
    taken_at: datetime | None
    notes: tuple[str, ...] = ()


def read_photo(data: bytes, name: str, max_megapixels: float) -> Photo:
    """Decode a photo by its content (the extension does not matter); of an animation the first frame.

    Orientation, transparency, CMYK, Lab, palettes, 16-bit depth and colour profiles are resolved to sRGB. A photo with
    more than `max_megapixels` is refused from its header, before any pixel is decoded; a cut-off or damaged one is
    refused rather than half decoded (a JPEG has no checksum, so changed bytes inside it may go unnoticed). Bad EXIF or
    a bad colour profile never fails a photo. Every failure is a PhotoError whose one sentence names the photo.
    """
    if not data:
        raise PhotoError(f"{name} is empty (0 bytes): copy it again from the camera.")
    from PIL import Image, ImageFile

    if (
        Image.MAX_IMAGE_PIXELS is not None
    ):  # Pillow's own limit, half of it; only ever raised, for others rely on it too
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(max_megapixels * 1e6 / 2))
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other packages switch it on, and Pillow then fills up with grey silently
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large photos and of odd metadata; both are handled here
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_megapixels * 1e6:
                    raise Image.DecompressionBombError
                # Pixels before EXIF: asking a PNG for EXIF decodes it, and a decoding error would pass for bad EXIF.
                # (Pillow turns a TIFF while decoding it, and takes the orientation out of its EXIF.)
                decoded = _decode(image, data)
                orientation, taken_at = _read_exif(image, notes)
                pixels = _to_rgb(decoded, notes)
    except Image.DecompressionBombError as error:
        raise PhotoError(
            f"{name} has more than the {max_megapixels:g} megapixels allowed: scale it down or raise "
            "ATTENDANSEE_MAX_MEGAPIXELS."
        ) from error
    except Image.UnidentifiedImageError as error:
        raise PhotoError(
            f"{name} is not a picture that can be read, or its beginning is damaged: "
            "save it as JPEG, PNG, WebP, TIFF or BMP."
        ) from error
    except MemoryError as error:
        raise PhotoError(f"{name} needs more memory than there is: scale it down.") from error
    except Exception as error:  # decoders raise anything (OSError, SyntaxError, struct.error, KeyError ...)
        raise PhotoError(f"{name} is cut off or damaged: copy it again from the camera.") from error
    return Photo(_turn_upright(pixels, orientation), taken_at, tuple(notes))


def _read_exif(image: "Image", notes: list[str]) -> tuple[int, datetime | None]:
    """EXIF orientation (1 to 8; 1 where missing or invalid) and the time the photo was taken."""
    try:
        exif = image.getexif()
        orientation = exif.get(_ORIENTATION, 1)
        taken_at = _taken_at(exif)
    except Exception:  # noqa: BLE001 broken EXIF raises anything and must not cost the photo
        notes.append("EXIF data could not be read: taken as upright, without a date.")
        return 1, None
    return (orientation if orientation in range(1, 9) else 1), taken_at


def _taken_at(exif: "Exif") -> datetime | None:
    for value in (exif.get_ifd(_EXIF_IFD).get(_DATE_TIME_ORIGINAL), exif.get(_DATE_TIME)):
        try:
            return datetime.strptime(str(value).strip("\0 "), "%Y:%m:%d %H:%M:%S")
        except ValueError:  # missing, or cameras without a set clock write 0000:00:00 00:00:00
            continue
    return None


def _decode(image: "Image", data: bytes) -> "Image":
    """The image with its pixels loaded."""
    from PIL import Image

    tags: Any = getattr(image, "tag_v2", {})
    if tags.get(_TIFF_COMPRESSION) != _TIFF_WEBP:
        image.load()
        return image
    # The libtiff in Pillow's wheels is built without WebP, but each strip is a whole WebP picture.
    canvas = Image.new("RGBA", (tags[256], tags[257]))
    top = 0
    for offset, count in zip(tags[273], tags[279], strict=True):
        with Image.open(io.BytesIO(data[offset : offset + count]), formats=("WEBP",)) as strip:
            canvas.paste(strip, (0, top))
            top += strip.height
    return canvas


def _to_rgb(image: "Image", notes: list[str]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 sRGB of a loaded image of any mode."""
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        gray = _to_8_bits(np.asarray(image))
        return np.repeat(gray[:, :, None], 3, axis=2)
    transparent = image.has_transparency_data
    if not transparent and image.info.get("icc_profile"):
        image = _to_srgb(image, notes)
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, _STRIP):  # the whole at once would exist three times over in memory
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        if transparent:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, _WHITE), strip)
        pixels[top : top + _STRIP] = np.asarray(strip.convert("RGB"))
    return pixels


def _to_8_bits(gray: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale deep gray values by 65535, floats by the smallest of 1, 255 and 65535 that covers them all."""
    values = np.nan_to_num(gray.astype(np.float32), posinf=0, neginf=0).clip(0)
    brightest = float(values.max())
    usual = (1.0, 255.0, 65535.0) if gray.dtype.kind == "f" else (65535.0,)
    white = next((point for point in usual if brightest <= point), brightest)
    return np.rint(values * (255.0 / white)).astype(np.uint8)


def _to_srgb(image: "Image", notes: list[str]) -> "Image":
    """Convert by the embedded colour profile; an unusable one is ignored."""
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return image
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ValueError):  # damaged, or made for another colour space than the photo's
        notes.append("The colour profile could not be used: colours taken as sRGB.")
        return image


def _turn_upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo EXIF orientation 1 to 8 (TIFF 6.0, tag 274: which corner the first row and column are at)."""
    if orientation >= 5:  # rows and columns are swapped
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
