"""The photo store: finds and reads class photos, keeps face crops; both on a disk or on any fsspec store.

Layout of the photo root:
    <class>/<session>/*.jpg            class photos, and optionally session.yaml with the session's date
    <class>/enrol/<student name>.jpg   a portrait of a known student, or
    <class>/enrol/<student name>/*.jpg several of them
"""

import errno
import hashlib
import io
import os
import stat
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import numpy as np
import yaml
from numpy.typing import NDArray

from pipelines.errors import PhotoError, PhotoStoreError
from pipelines.partitions import ENROL, BadNameError, SessionKey, session_key
from pipelines.settings import Settings

PHOTO_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp"})
# Pictures and films that cameras and phones write and that are not read; without a word about them a class whose phone
# takes HEIC would wait for its attendance for ever.
# fmt: off
UNREAD_SUFFIXES = frozenset({
    "heic", "heif", "hif", "avif", "gif", "jxl", "jp2", "j2k", "svg", "psd", "pdf",
    "dng", "cr2", "cr3", "nef", "arw", "raf", "orf", "rw2", "raw",
    "mov", "mp4", "m4v", "avi", "3gp",
})
# fmt: on
SESSION_FILE = "session.yaml"
CROP_JPEG_QUALITY = 95

# Where stores keep the time of the last change; fsspec has no common name for it.
_MODIFIED_KEYS = ("mtime", "modified", "LastModified", "last_modified", "updated")
# What NAS systems and archive programs leave beside photos; the rest of the litter starts with '.' or '~'.
_LITTER = frozenset({"@eaDir", "__MACOSX"})
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class PhotoFile:
    """A file below the photo root, not opened yet.

    path: POSIX path from the root, spelt as in the store.
    student: whom a portrait shows (file stem or folder name, in Unicode NFC); None outside `enrol`.
    size: bytes. modified: seconds since the epoch, None where the store does not say.
    """

    class_name: str
    session_name: str
    path: str
    student: str | None
    size: int
    modified: float | None


class BadFolder(NamedTuple):
    """A folder or file that cannot be used where it is; reason: one sentence with the remedy."""

    path: str
    reason: str


@dataclass
class Listing:
    """What lies below the photo root.

    photos: sorted by class, session, name. session_files: every session.yaml, described like a photo.
    sessions: every session folder, an empty one too. bad_folders: what was left out, with the reason.
    """

    photos: list[PhotoFile] = field(default_factory=list)
    session_files: list[PhotoFile] = field(default_factory=list)
    sessions: list[SessionKey] = field(default_factory=list)
    bad_folders: list[BadFolder] = field(default_factory=list)

    def add(self, other: "Listing") -> None:
        """Append what another listing holds."""
        self.photos += other.photos
        self.session_files += other.session_files
        self.sessions += other.sessions
        self.bad_folders += other.bad_folders


class _UnreadableFolderError(PhotoStoreError):
    """A folder that nobody may list, while others can be."""


def fingerprint(files: Iterable[PhotoFile]) -> str:
    """16 hex digits over the paths, sizes and times of the files, in any order; reads no file."""
    digest = hashlib.blake2b(digest_size=8)
    for line in sorted(f"{file.path}\0{file.size}\0{file.modified}\0" for file in files):
        digest.update(line.encode())
    return digest.hexdigest()


class PhotoStore(dg.ConfigurableResource):
    """Photos to read and crops to keep.

    photos, crops: a folder or an fsspec URL (`s3://bucket/photos`). Both are shown in the Dagster UI, so credentials
    belong in the store's own environment variables, not in the URL.
    """

    photos: str
    crops: str

    @classmethod
    def from_settings(cls, settings: Settings) -> "PhotoStore":
        """The store that the settings name; using it without a photo root set raises PhotoStoreError."""
        return cls(photos=settings.photos or "", crops=str(settings.crops_folder))

    def scan(self, class_name: str | None = None, session_name: str | None = None) -> Listing:
        """List the photo root, or one class or session of it.

        A class of which a folder may not be listed is a bad folder, and nothing of it is in the listing. Raises
        PhotoStoreError where the photo root or the named class cannot be listed, a folder vanishes meanwhile, or the
        disk or network fails: whoever asks must never mistake that for "all photos were removed". Raises BadNameError
        for an argument that cannot be a key.
        """
        root = self._photo_root()
        listing = Listing()
        if class_name is not None:
            session_key(class_name, session_name or ENROL)
            self._scan_class(root, class_name, session_name, listing)
            return listing
        for found_class in self._folders(root, "", listing):
            if not _usable(found_class, ENROL, found_class, listing):
                continue
            found = Listing()
            try:
                self._scan_class(root, found_class, session_name, found, named=False)
            except _UnreadableFolderError as error:
                # Half a class would be wrong: without its portraits everybody in it would become somebody unknown.
                reason = f"The class {found_class!r} is left out. {error}"
                listing.bad_folders.append(BadFolder(f"{found_class}/", reason))
            else:
                listing.add(found)
        return listing

    def _scan_class(
        self, root: "_Root", class_name: str, session_name: str | None, listing: Listing, *, named: bool = True
    ) -> None:
        """Add what lies in a class, or in one session of it; named: the session is meant to be there."""
        names = [session_name] if session_name and named else self._folders(root, class_name, listing)
        for name in names:
            if session_name in (None, name) and _usable(class_name, name, f"{class_name}/{name}", listing):
                self._scan_session(root, SessionKey(class_name, name), listing)

    def list_photos(self, class_name: str | None = None, session_name: str | None = None) -> Iterator[PhotoFile]:
        """The photos of `scan`, for callers who do not report bad folders; raises the same errors, at once."""
        return iter(self.scan(class_name, session_name).photos)

    def read(self, path: str) -> bytes:
        """A photo's bytes; raises PhotoError where the file has vanished, PhotoStoreError where it cannot be read."""
        root = self._photo_root()
        relative = _relative(path)
        try:
            return root.read(relative)
        except FileNotFoundError as error:
            # A share that was unmounted must not look like photos that somebody removed.
            self._entries(root, "")
            raise PhotoError(
                f"The photo {path!r} is no longer in the photo root: put it back or process its session again."
            ) from error
        except OSError as error:
            raise PhotoStoreError(
                f"The photo {path!r} in {self.photos} cannot be read ({_why(error)}): check its permissions "
                "and the connection."
            ) from error

    def session_date(self, class_name: str, session_name: str) -> date | None:
        """The date in the session's session.yaml (`date: 2026-09-01`); None without the file, or where it is empty.

        Raises PhotoError naming the file where it holds something else.
        """
        key = session_key(class_name, session_name)
        path = f"{key.class_name}/{key.session_name}/{SESSION_FILE}"
        try:
            data = self.read(path)
        except PhotoError:
            return None
        try:
            # RecursionError: a file of thousands of opening brackets.
            content = yaml.safe_load(data)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise PhotoError(f"{path} is not valid YAML: write the date as `date: 2026-09-01`.") from error
        if content is None:
            return None
        if isinstance(content, dict):
            # `Date:` or `day:` must not leave the session without its date in silence.
            misnamed = any(isinstance(value, date) for value in content.values())
            held_on = content.get("date", "" if misnamed else None)
        else:
            held_on = content
        if isinstance(held_on, datetime):
            return held_on.date()
        if held_on is None or isinstance(held_on, date):
            return held_on
        try:
            return date.fromisoformat(held_on)
        except (TypeError, ValueError) as error:
            raise PhotoError(f"{path} does not give a date: write it as `date: 2026-09-01`.") from error

    def write_crop(self, key: str, rgb: NDArray[np.uint8]) -> str:
        """Keep a face crop as JPEG and return its path for `read_crop`; the same key replaces the crop.

        key: relative POSIX path without suffix. rgb: (H, W, 3) uint8. A reader sees the old file or the new one, never
        a part. Local files are 0600 in 0700 folders. Raises PhotoStoreError where it cannot be written.
        """
        from PIL import Image

        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
            raise ValueError(f"a crop must be a (H, W, 3) uint8 array, not {rgb.shape} {rgb.dtype}")
        path = _relative(f"{key}.jpg")
        jpeg = io.BytesIO()
        Image.fromarray(rgb).save(jpeg, "JPEG", quality=CROP_JPEG_QUALITY)
        try:
            self._crop_root().write(path, jpeg.getvalue())
        except OSError as error:
            raise PhotoStoreError(
                f"The crop {path!r} cannot be written to {self.crops} ({_why(error)}): check space and permissions, "
                "or set ATTENDANSEE_HOME to another folder."
            ) from error
        return path

    def read_crop(self, path: str) -> bytes:
        """A crop's JPEG bytes; raises PhotoStoreError where it cannot be read."""
        try:
            return self._crop_root().read(_relative(path))
        except OSError as error:
            raise PhotoStoreError(
                f"The crop {path!r} cannot be read from {self.crops} ({_why(error)}): check ATTENDANSEE_HOME "
                "or restore the folder."
            ) from error

    def crop_paths(self, folder: str) -> set[str]:
        """Paths of the crops that are kept in a folder; none where there is no such folder."""
        relative = _relative(folder)
        try:
            return {f"{relative}/{entry.name}" for entry in self._crop_root().entries(relative)}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise PhotoStoreError(
                f"The crops in {folder!r} of {self.crops} cannot be listed ({_why(error)}): check ATTENDANSEE_HOME and "
                "its permissions."
            ) from error

    def delete_crop(self, path: str) -> None:
        """Erase a crop; one that is gone already is no error. Raises PhotoStoreError where it cannot be erased."""
        try:
            self._crop_root().delete(_relative(path))
        except OSError as error:
            raise PhotoStoreError(
                f"The crop {path!r} cannot be erased from {self.crops} ({_why(error)}): check permissions, then again."
            ) from error

    def _photo_root(self) -> "_Root":
        if not self.photos:
            raise PhotoStoreError("No photo root is set: set ATTENDANSEE_PHOTOS to the folder that holds the classes.")
        return _open_root(self.photos)

    def _crop_root(self) -> "_Root":
        if not self.crops:
            raise PhotoStoreError("No crops folder is set: set ATTENDANSEE_HOME to the folder for the project's data.")
        return _open_root(self.crops)

    def _entries(self, root: "_Root", folder: str) -> "list[_Entry]":
        place = f"The folder {folder!r} in the photo root {self.photos}" if folder else f"The photo root {self.photos}"
        try:
            return sorted(entry for entry in root.entries(folder) if not _is_litter(entry.name))
        except FileNotFoundError as error:
            raise PhotoStoreError(f"{place} does not exist: create or mount it, or set ATTENDANSEE_PHOTOS.") from error
        except OSError as error:
            # Its own fault, not that of a network or a disk that is failing.
            its_own = isinstance(error, PermissionError) or error.errno == errno.ELOOP
            raise (_UnreadableFolderError if its_own else PhotoStoreError)(
                f"{place} cannot be listed ({_why(error)}): check that it is a folder, its permissions "
                "and the connection."
            ) from error

    def _folders(self, root: "_Root", folder: str, listing: Listing) -> list[str]:
        """Names of the folders in one that is to hold folders only; photos in it are reported."""
        entries = self._entries(root, folder)
        if any(_is_photo(entry) for entry in entries):
            listing.bad_folders.append(
                BadFolder(
                    folder or ".",
                    f"Photos lie directly in {folder or 'the photo root'!r} and are left out: "
                    "move them to <class>/<session>/.",
                )
            )
        return [entry.name for entry in entries if entry.is_folder]

    def _scan_session(self, root: "_Root", key: SessionKey, listing: Listing) -> None:
        folder = f"{key.class_name}/{key.session_name}"
        listing.sessions.append(key)
        entries = self._entries(root, folder)
        _report_unread(folder, entries, listing)
        for entry in entries:
            path = f"{folder}/{entry.name}"
            if entry.is_folder and key.is_enrolment:
                portraits = self._entries(root, path)
                _report_unread(path, portraits, listing)
                for portrait in portraits:
                    _add_file(key, path, portrait, entry.name, listing)
            elif entry.name == SESSION_FILE and not entry.is_folder:
                listing.session_files.append(PhotoFile(*key, path, None, entry.size, entry.modified))
            else:
                student = entry.name.rpartition(".")[0] if key.is_enrolment else None
                _add_file(key, folder, entry, student, listing)


def _add_file(key: SessionKey, folder: str, entry: "_Entry", student: str | None, listing: Listing) -> None:
    path = f"{folder}/{entry.name}"
    if entry.is_folder:
        reason = f"The folder {path!r} lies too deep and is left out: move its photos to {folder!r}."
        listing.bad_folders.append(BadFolder(_printable(path), reason))
    elif _is_photo(entry):
        if student is not None:
            student = unicodedata.normalize("NFC", student).strip()
        # Surrogates stand for bytes that are no UTF-8: such a name can be neither stored nor shown.
        if student == "" or _printable(path) != path:
            reason = f"The photo {path!r} cannot be used: rename it with ordinary letters."
            listing.bad_folders.append(BadFolder(_printable(path), reason))
        else:
            listing.photos.append(PhotoFile(*key, path, student, entry.size, entry.modified))


def _report_unread(folder: str, entries: "list[_Entry]", listing: Listing) -> None:
    """Report the pictures of a folder that are in no format that is read, as one."""
    unread = [entry.name for entry in entries if not entry.is_folder and _suffix(entry) in UNREAD_SUFFIXES]
    if unread:
        shown = ", ".join(map(repr, unread[:_NAMES_SHOWN])) + (", ..." if len(unread) > _NAMES_SHOWN else "")
        reason = (
            f"{len(unread)} {'files' if len(unread) > 1 else 'file'} in {folder!r} cannot be read and "
            f"{'are' if len(unread) > 1 else 'is'} left out ({shown}): save as JPEG or PNG, one photo a file."
        )
        listing.bad_folders.append(BadFolder(_printable(f"{folder}/{unread[-1]}"), _printable(reason)))


def _usable(class_name: str, session_name: str, path: str, listing: Listing) -> bool:
    try:
        session_key(class_name, session_name)
    except BadNameError as error:
        listing.bad_folders.append(BadFolder(_printable(path), str(error)))
        return False
    return True


def _is_litter(name: str) -> bool:
    return name.startswith((".", "~")) or name in _LITTER


def _is_photo(entry: "_Entry") -> bool:
    return not entry.is_folder and _suffix(entry) in PHOTO_SUFFIXES


def _suffix(entry: "_Entry") -> str:
    return entry.name.rpartition(".")[2].lower()


def _printable(path: str) -> str:
    return path if path.isascii() else path.encode(errors="backslashreplace").decode()


def _relative(path: str) -> str:
    """The path itself if it stays below its root; raises PhotoStoreError otherwise."""
    if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise PhotoStoreError(f"The path {path!r} cannot be used: give one below the root, without '..'.")
    return path


def _why(error: OSError) -> str:
    return error.strerror or str(error)


class _Entry(NamedTuple):
    """One name in a folder; modified: seconds since the epoch or None."""

    name: str
    is_folder: bool
    size: int
    modified: float | None


class _LocalRoot:
    """A folder on this machine. Paths are relative; errors are OSError."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entries(self, folder: str) -> list[_Entry]:
        found = []
        with os.scandir(self.root / folder) as names:
            for name in names:
                try:
                    status = name.stat()
                except FileNotFoundError:
                    if name.is_symlink():
                        continue  # It points nowhere.
                    raise  # Gone in the middle of the listing, perhaps with its disk: the listing cannot be trusted.
                is_folder = stat.S_ISDIR(status.st_mode)
                # Opening a named pipe called x.jpg would wait for ever.
                if is_folder or stat.S_ISREG(status.st_mode):
                    found.append(_Entry(name.name, is_folder, status.st_size, status.st_mtime))
        return found

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        target = self.root / path
        # mkdir's `parents` would make the folders between with the umask's permissions.
        for folder in reversed([folder for folder in target.parents if not folder.exists()]):
            folder.mkdir(mode=0o700, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".crop-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def delete(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)


class _RemoteRoot:
    """A folder of an fsspec store. Paths are relative; errors are OSError, whatever the store raises."""

    def __init__(self, file_system: Any, base: str) -> None:
        self.file_system = file_system
        self.base = base.rstrip("/")

    def entries(self, folder: str) -> list[_Entry]:
        path = self._path(folder)
        found = []
        with _as_os_error():
            # Object stores remember listings: a sensor in a long-lived process would never see a new photo.
            self.file_system.invalidate_cache()
            for info in self.file_system.ls(path, detail=True):
                is_folder = info["type"] == "directory"
                if info["name"].strip("/") != path.strip("/"):
                    name = info["name"].rstrip("/").rpartition("/")[2]
                    found.append(_Entry(name, is_folder, info["size"] or 0, _modified(info)))
                elif not is_folder and info["size"]:
                    # `ls` of a file gives the file; empty ones of this name are object stores' folder markers.
                    raise NotADirectoryError(f"{path} is a file")
        return found

    def read(self, path: str) -> bytes:
        with _as_os_error():
            return self.file_system.cat_file(self._path(path))

    def write(self, path: str, data: bytes) -> None:
        target = self._path(path)
        with _as_os_error():
            self.file_system.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.file_system.pipe_file(target, data)

    def delete(self, path: str) -> None:
        with _as_os_error():
            try:
                self.file_system.rm_file(self._path(path))
            except FileNotFoundError:
                return

    def _path(self, path: str) -> str:
        # An archive's own root has no name, and its members none that begins with a slash.
        return f"{self.base}/{path}" if self.base and path else self.base or path


_Root = _LocalRoot | _RemoteRoot


def _open_root(root: str) -> _Root:
    try:
        if "://" not in root:
            return _LocalRoot(Path(root).expanduser())
        from upath import UPath

        url = UPath(root)
        return _LocalRoot(Path(url.path)) if url.protocol in ("file", "local") else _RemoteRoot(url.fs, url.path)
    except Exception as error:
        # An unknown protocol, a store's package that is not installed, wrong credentials: each store raises its own.
        raise PhotoStoreError(f"{root} cannot be opened ({error}): correct it or install what it needs.") from error


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _modified(info: dict[str, Any]) -> float | None:
    value = next((info[key] for key in _MODIFIED_KEYS if info.get(key) is not None), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    return value.timestamp() if isinstance(value, datetime) else value
