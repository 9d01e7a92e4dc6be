"""The demo's class: portraits and three sessions, made from photos that two packages ship (never committed)."""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import PhotoError

if TYPE_CHECKING:
    from PIL.Image import Image

CLASS_NAME = "Demo101"

# Invented names, from left to right, with their faces in the photo of six people: (x, y, width, height) in pixels.
FACES = {
    "Ada": (54, 266, 110, 129),
    "Bea": (269, 152, 96, 117),
    "Carl": (466, 265, 103, 140),
    "Dan": (743, 343, 99, 132),
    "Emil": (911, 62, 101, 136),
    "Fay": (1134, 272, 93, 125),
}
# Portraits reach this share of the face's sides beyond it: hair, chin and nobody else's face.
PORTRAIT_MARGIN = 0.7


def make_demo_photos(folder: Path) -> None:
    """Write the photo root of the demo to `folder`; what is there and right already is left alone, mtime included.

    `Demo101/enrol/` holds a portrait of each of six students, three further folders a session each: everybody; Fay
    missing; everybody and a guest. The photos are the same bytes on every run with the same releases of the packages.
    Raises PhotoError if a package that ships a source photo is missing.
    """
    class_folder = folder / CLASS_NAME
    for name, content in _contents().items():
        _write(class_folder / name, content)


def _contents() -> dict[str, bytes]:
    """The content of each file of the class folder by its relative path."""
    group = _packaged_photo("insightface", "data/images/t1.jpg")
    guest = _packaged_photo("skimage", "data/astronaut.png")
    files = {
        f"enrol/{name}.jpg": _jpeg(_varied(_portrait(group, face), brightness=1.06, scale=1.4), quality=92)
        for name, face in FACES.items()
    }

    files |= _session(
        "2026-09-07",
        _jpeg(_varied(group, brightness=0.92, scale=1.1), quality=88),
        _jpeg(_varied(group, brightness=1.12, degrees=2.5), quality=80),
    )
    # Fay sits at the right, beyond both photos' edges.
    files |= _session(
        "2026-09-14",
        _jpeg(_varied(group.crop((0, 20, 700, 760)), brightness=0.85, scale=1.25), quality=85),
        _jpeg(_varied(group.crop((420, 0, 1085, 700)), brightness=1.05, degrees=-2), quality=90),
    )
    with_guest = group.copy()
    with_guest.paste(guest.crop((60, 0, 400, 512)), (380, 460))
    files |= _session("2026-09-21", _jpeg(_varied(with_guest, brightness=1.08, scale=0.95), quality=75))
    return files


def _session(date: str, *photos: bytes) -> dict[str, bytes]:
    files = {f"{date}/photo_{number}.jpg": photo for number, photo in enumerate(photos, start=1)}
    return {**files, f"{date}/session.yaml": f"date: {date}\n".encode()}


def _packaged_photo(package: str, name: str) -> "Image":
    from PIL import Image

    # Importing insightface would need its dependencies, so the photo is only looked up beside its code.
    spec = find_spec(package)
    path = Path((spec.submodule_search_locations or [""])[0]) / name if spec else Path(name)
    if not path.is_file():
        raise PhotoError(f"The demo's source photo {name} of the package {package} is missing: run `make demo` again.")
    with Image.open(path) as photo:
        return photo.convert("RGB")


def _portrait(photo: "Image", face: tuple[int, int, int, int]) -> "Image":
    """The part of the photo around a face, as far as the photo reaches."""
    x, y, width, height = face
    dx, dy = round(width * PORTRAIT_MARGIN), round(height * PORTRAIT_MARGIN)
    return photo.crop(
        (max(x - dx, 0), max(y - dy, 0), min(x + width + dx, photo.width), min(y + height + dy, photo.height))
    )


def _varied(photo: "Image", brightness: float, scale: float = 1.0, degrees: float = 0.0) -> "Image":
    """The photo as another camera might have taken it; a turned one loses the margin that the turn left empty."""
    from PIL import Image, ImageEnhance

    varied = ImageEnhance.Brightness(photo).enhance(brightness)
    if degrees:
        width, height = varied.size
        margin = round(0.025 * max(width, height))
        varied = varied.rotate(degrees, resample=Image.Resampling.BICUBIC)
        varied = varied.crop((margin, margin, width - margin, height - margin))
    return varied.resize((round(varied.width * scale), round(varied.height * scale)), Image.Resampling.LANCZOS)


def _jpeg(photo: "Image", quality: int) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The hidden name keeps a half-written file from being taken for a photo.
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)
