"""A class's review as one HTML file that needs nothing else: no network, no script."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING

import jinja2

from pipelines.errors import PhotoError, PhotoStoreError
from pipelines.resources.photo_reader import read_photo
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.context import ServiceContext
from pipelines.services.photo_roots import registered_store
from pipelines.services.review import Photo, Review, explain_face

if TYPE_CHECKING:
    from PIL.Image import Image

# A file that a phone opens and a mail takes: base64 makes four bytes of three, so 24 MB at most.
PHOTO_BYTES = 13_000_000
FACE_BYTES = 5_000_000
# The longer sides that photos are scaled down to, the largest first that leaves room for the others.
_PHOTO_SIDES = (1600, 1200, 900, 640)
FACE_SIZE = (96, 120)
_PHOTO_QUALITY = 72
_FACE_QUALITY = 80
_LEFT_OUT = "Left out to keep the file small: a report of one session holds it."

# How each status and each state is told apart where colours are not.
SYMBOLS = {
    "present": "✓",
    "absent": "✗",
    "unsure": "?",
    "excused": "E",
    "unknown": "●",
    "visitor": "V",
    "sure": "✓",
    "not_a_face": "⊘",
}


@dataclass
class _Pictures:
    """JPEGs as data URIs, as many as the file may hold; `missing` says why the others are not there.

    photos, missing: by the photo's id. faces, missing_faces: by the crop's id.
    """

    photos: dict[int, str] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)
    faces: dict[int, str] = field(default_factory=dict)
    missing_faces: dict[int, str] = field(default_factory=dict)


def report_html(context: ServiceContext, found: Review, made_at: datetime) -> str:
    """The report; photos are scaled down, and none is in it whose file is gone or damaged: the report says so in its
    place. Of more than the file may hold, the newest sessions' photos are in it.

    It holds faces and names: whoever stores it keeps it from others. made_at: shown in it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines", "reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found_faces = found.faces()
    return environment.get_template("class.html").render(
        review=found,
        made_at=made_at,
        faces=found_faces,
        names={student.student_id: student.label for student in found.students},
        # For attributes, where no <bdi> can be.
        isolated_names=found.names_in_sentences,
        cells={(cell.student_id, cell.session_id): cell for cell in found.cells},
        places=found.places,
        sessions={session.session_id: session for session in found.sessions},
        pictures=_pictures(context, found),
        symbols=SYMBOLS,
        why=lambda face: explain_face(found, face),
        whys=lambda crop_ids: dict.fromkeys(explain_face(found, found_faces[crop_id]) for crop_id in crop_ids),
    )


def _pictures(context: ServiceContext, found: Review) -> _Pictures:
    pictures = _Pictures()
    newest_first = sorted(found.sessions, key=lambda session: (session.held_on or date.min, session.name), reverse=True)
    shown = [photo for session in newest_first for photo in session.photos if photo.refused_reason is None]
    _add_photos(pictures, context, found.class_name, shown)
    _add_faces(pictures, context.store, found)
    return pictures


def _add_faces(pictures: _Pictures, store: PhotoStore, found: Review) -> None:
    faces, room, is_full = found.faces(), FACE_BYTES, False
    for crop_id in _in_order_of_need(found):
        path = faces[crop_id].crop_path
        if is_full:  # a class has tens of thousands of crops: none is read in vain
            pictures.missing_faces[crop_id] = "left out to keep the file small"
            continue
        try:
            jpeg = face_jpeg(store, path, FACE_SIZE) if path else None
        except (PhotoError, PhotoStoreError):
            pictures.missing_faces[crop_id] = "its picture cannot be read"
            continue
        if jpeg is None:
            pictures.missing_faces[crop_id] = "its picture is gone"
        elif len(jpeg) > room:
            is_full = True
            pictures.missing_faces[crop_id] = "left out to keep the file small"
        else:
            pictures.faces[crop_id] = data_uri(jpeg)
            room -= len(jpeg)


def _in_order_of_need(found: Review) -> Iterable[int]:
    """Every crop that the report shows by itself, once: what is asked first, then portraits, then the others."""
    order: dict[int, None] = {}
    for question in found.questions:
        order |= dict.fromkeys(question.crop_ids)
        for candidate in question.candidates:
            order |= dict.fromkeys(candidate.crop_ids)
    for student in found.students:
        order |= dict.fromkeys(student.portrait_ids)
    order |= dict.fromkeys(crop_id for cell in found.cells for crop_id in cell.doubtful_ids)
    order |= dict.fromkeys(cell.nearest_id for cell in found.cells if cell.nearest_id is not None)
    return order | dict.fromkeys(crop_id for student in found.students for crop_id in student.crop_ids)


def _add_photos(pictures: _Pictures, context: ServiceContext, class_name: str, photos: list[Photo]) -> None:
    try:
        store = registered_store(context.database, context.store, class_name)
    except PhotoStoreError as error:
        pictures.missing |= {photo.image_id: str(error) for photo in photos}
        return
    room, is_full = PHOTO_BYTES, False
    for number, photo in enumerate(photos):
        if is_full:
            pictures.missing[photo.image_id] = _LEFT_OUT
            continue
        try:
            jpeg = _photo_jpeg(store, photo, room // (len(photos) - number), context.settings.max_megapixels)
        except (PhotoError, PhotoStoreError) as error:
            pictures.missing[photo.image_id] = str(error)
            continue
        if len(jpeg) > room:
            is_full = True
            pictures.missing[photo.image_id] = _LEFT_OUT
            continue
        room -= len(jpeg)
        pictures.photos[photo.image_id] = data_uri(jpeg)


def _photo_jpeg(store: PhotoStore, photo: Photo, wanted_bytes: int, max_megapixels: float) -> bytes:
    """The photo, scaled down until it takes no more than what is wanted, or to the smallest side."""
    from PIL import Image

    image = Image.fromarray(read_photo(store.read(photo.path), photo.path, max_megapixels).pixels)
    jpeg = b""
    for side in _PHOTO_SIDES:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        jpeg = _jpeg(image, _PHOTO_QUALITY)
        if len(jpeg) <= wanted_bytes:
            break
    return jpeg


def face_jpeg(store: PhotoStore, path: str, size: tuple[int, int]) -> bytes | None:
    """The crop, cut from the original photo when the face was found, as a JPEG of this width and height.

    None where its file is gone; raises PhotoStoreError where it cannot be read for another reason,
    PhotoError where it is damaged.
    """
    from PIL import Image, ImageOps

    try:
        data = store.read_crop(path)
    except PhotoStoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = image.convert("RGB")
    except OSError as error:  # PIL's UnidentifiedImageError is one
        raise PhotoError(f"The picture of a face {path!r} is damaged: process its session again.") from error
    return _jpeg(ImageOps.fit(pixels, size, Image.Resampling.LANCZOS), _FACE_QUALITY)


def _jpeg(image: "Image", quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()


def data_uri(jpeg: bytes) -> str:
    """A JPEG as an address that holds it."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
