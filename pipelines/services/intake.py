"""Register a session's photos: each once by content, with size, date and path, or with the reason it is refused."""

import hashlib
from dataclasses import dataclass, field

from pipelines.database import catalog
from pipelines.errors import PhotoError
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.photo_reader import read_photo
from pipelines.resources.photo_store import SESSION_FILE, PhotoFile, PhotoStore
from pipelines.services.photo_roots import store_of
from pipelines.settings import Settings


@dataclass(frozen=True)
class IntakeReport:
    """What registering a session's photos found."""

    photos: int
    new: int
    duplicates: int
    removed: int
    refused: dict[str, str] = field(default_factory=dict)


def register_session_images(database: Database, store: PhotoStore, settings: Settings, key: SessionKey) -> IntakeReport:
    """Bring the database's photos of a session in line with the photo root.

    A renamed copy is the same photo; a photo that is gone is marked removed and its faces no longer count; a photo
    that cannot be read is kept with its reason, and a session.yaml that cannot be read leaves the photos to date the
    session. Raises PhotoStoreError where the root cannot be listed.
    """
    store = store_of(database, store, key.class_name)
    files = list(store.list_photos(key.class_name, key.session_name))
    # What cannot be used besides photos, by path.
    unusable: dict[str, str] = {}
    held_on = None
    try:
        if not key.is_enrolment:
            held_on = store.session_date(key.class_name, key.session_name)
    except PhotoError as error:
        unusable[f"{key.class_name}/{key.session_name}/{SESSION_FILE}"] = str(error)
    with database.connection() as connection:
        session = catalog.ensure_session(connection, key, held_on)
        catalog.record_photo_root(connection, key.class_name, store.photos)
        known = catalog.known_hashes(connection, session.id)
        refused_before = catalog.refused_hashes(connection, session.id)

    present: dict[str, PhotoFile] = {}
    new = 0
    for file in files:
        try:
            data = store.read(file.path)
        except PhotoError:
            continue  # Gone since the listing, as if it had been removed before.
        sha256 = hashlib.sha256(data).hexdigest()
        first = present.setdefault(sha256, file)
        if first is not file:
            if first.student != file.student:
                unusable[file.path] = (
                    f"{file.path} is the same photo as {first.path}, so {file.student} is not added: give each student a "
                    "portrait of their own."
                )
            continue
        if sha256 not in known or sha256 in refused_before:
            # A refused photo is read again each time, for its remedy may have been followed.
            _register(database, session.id, sha256, file.path, data, settings)
            new += sha256 not in known
        with database.connection() as connection:
            student = None
            if file.student:
                catalog.lock_class(connection, session.class_id)
                student = catalog.portrayed_student(
                    connection, session.class_id, session.id, sha256, file.path, file.student
                )
            catalog.place_image(connection, session.id, sha256, file.path, student)

    with database.connection() as connection:
        # Only what was known before: another run may have registered a photo that arrived after this run's listing.
        removed = catalog.mark_removed(connection, session.id, list(known - present.keys()))
        if held_on is None and not key.is_enrolment:
            catalog.date_session_by_its_photos(connection, session.id)
        catalog.record_remarks(connection, session.id, list(unusable.values()))
        images = catalog.session_images(connection, session.id)
    return IntakeReport(
        photos=len(images),
        new=new,
        duplicates=len(files) - len(present),
        removed=removed,
        refused={image.path: image.refused_reason for image in images if image.refused_reason} | unusable,
    )


def _register(database: Database, session_id: int, sha256: str, path: str, data: bytes, settings: Settings) -> None:
    width = height = taken_at = reason = None
    try:
        photo = read_photo(data, path, settings.max_megapixels)
        height, width = photo.pixels.shape[:2]
        taken_at = photo.taken_at
    except PhotoError as error:
        reason = str(error)
    with database.connection() as connection:
        catalog.register_image(
            connection,
            session_id,
            sha256=sha256,
            path=path,
            size_bytes=len(data),
            width=width,
            height=height,
            taken_at=taken_at,
            refused_reason=reason,
        )


def unregistered_photos(database: Database, store: PhotoStore, key: SessionKey) -> list[str]:
    """Paths in the photo root that are neither registered nor refused with a reason (nor a copy of one that is)."""
    store = store_of(database, store, key.class_name)
    with database.connection() as connection:
        session = catalog.find_session(connection, key)
        known = catalog.known_hashes(connection, session.id)
    return [
        file.path
        for file in store.list_photos(key.class_name, key.session_name)
        if hashlib.sha256(store.read(file.path)).hexdigest() not in known
    ]
