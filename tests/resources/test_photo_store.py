"""The photo store on a real folder and on fsspec's memory store."""

import io
import os
import stat
import subprocess
import sys
import threading
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import date, datetime, timezone
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import PhotoError, PhotoStoreError
from pipelines.partitions import BadNameError, SessionKey
from pipelines.resources.photo_store import PhotoFile, PhotoStore, fingerprint
from pipelines.settings import Settings


class Place:
    """A photo root and a crops folder to fill, and the store that looks at them."""

    def __init__(self, photos: str, crops: str) -> None:
        self.store = PhotoStore(photos=photos, crops=crops)
        self.file_system, self.root = fsspec.core.url_to_fs(photos)
        self.file_system.makedirs(self.root, exist_ok=True)

    def put(self, *paths: str, content: bytes = b"photo") -> None:
        for path in paths:
            self.file_system.makedirs(f"{self.root}/{path}".rpartition("/")[0], exist_ok=True)
            self.file_system.pipe_file(f"{self.root}/{path}", content)

    def remove(self, path: str) -> None:
        self.file_system.rm(f"{self.root}/{path}".rstrip("/"), recursive=True)


@pytest.fixture
def local(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "photos"), str(tmp_path / "crops"))


@pytest.fixture
def memory() -> Iterator[Place]:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield Place("memory://photos", "memory://crops")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["local", "memory", "file URL"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file URL":
        return Place(f"file://{tmp_path}/photos", f"file://{tmp_path}/crops")
    return request.getfixturevalue(request.param)


def paths(store: PhotoStore, *args: str) -> list[str]:
    return [photo.path for photo in store.list_photos(*args)]


def as_nobody(folder: Path, action: Callable[[], str]) -> str:
    """What the action says in a child process without root's rights, its current folder being `folder`."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.chdir(folder)
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            answer = action()
        except Exception as error:  # noqa: BLE001 - the parent judges whatever it was
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read().decode()
    os.waitpid(child, 0)
    return answer


# --- listing


def test_every_photo_format_is_found_and_nothing_else(place: Place) -> None:
    wanted = [f"math/monday/{n}" for n in ("a.jpg", "b.JPEG", "c.Png", "d.webp", "e.tif", "f.TIFF", "g.bmp", "h.i.jpg")]
    place.put(*wanted, "math/monday/session.yaml", "math/labels.csv", "readme.txt")
    place.put(
        *[f"math/monday/{n}" for n in (".a.jpg", "._a.jpg", "~a.jpg", "Thumbs.db", "a.jpg.part", "a.txt", "jpg~")]
    )
    place.put(".git/x/a.jpg", "math/.cache/a.jpg", "@eaDir/x/a.jpg", "math/monday/@eaDir/a.jpg")

    listing = place.store.scan()

    assert [photo.path for photo in listing.photos] == sorted(wanted)
    assert {(p.class_name, p.session_name, p.student, p.size) for p in listing.photos} == {("math", "monday", None, 5)}
    assert [file.path for file in listing.session_files] == ["math/monday/session.yaml"]
    assert listing.bad_folders == []


def test_pictures_in_formats_that_are_not_read_are_reported_once_a_folder(place: Place) -> None:
    place.put("math/monday/a.jpg", "math/enrol/Ana/1.HEIC", "math/enrol/Bo.avif")
    place.put(*[f"math/monday/IMG_{number}.heic" for number in range(1, 6)])
    listing = place.store.scan()
    assert [photo.path for photo in listing.photos] == ["math/monday/a.jpg"]
    assert [folder.reason for folder in listing.bad_folders] == [
        "1 file in 'math/enrol' cannot be read and is left out ('Bo.avif'): save as JPEG or PNG, one photo a file.",
        "1 file in 'math/enrol/Ana' cannot be read and is left out ('1.HEIC'): save as JPEG or PNG, one photo a file.",
        "5 files in 'math/monday' cannot be read and are left out ('IMG_1.heic', 'IMG_2.heic', 'IMG_3.heic', ...): "
        "save as JPEG or PNG, one photo a file.",
    ]
    before = {folder.path for folder in listing.bad_folders}
    place.put("math/monday/IMG_6.heic")
    # The sensor tells of each path once, and one more file is news.
    assert len({folder.path for folder in place.store.scan().bad_folders} - before) == 1


def test_a_local_photo_has_its_time_of_change(local: Place) -> None:
    local.put("math/monday/a.jpg")
    os.utime(Path(local.root, "math/monday/a.jpg"), (1_700_000_000.5, 1_700_000_000.5))
    assert next(local.store.list_photos()).modified == 1_700_000_000.5


def test_a_store_without_times_gives_none(memory: Place) -> None:
    memory.put("math/monday/a.jpg")
    assert next(memory.store.list_photos()).modified is None


def test_portraits_name_their_student_by_file_or_folder(place: Place) -> None:
    decomposed = unicodedata.normalize("NFD", "Zoë Müller")
    place.put("math/enrol/Dr. José Ñandú.jpg", f"math/enrol/{decomposed}/1.png", f"math/enrol/{decomposed}/2.jpg")
    place.put("math/enrol/李 小龙.JPG", "math/enrol/Ana_Lima /x.jpg")

    photos = list(place.store.list_photos("math", "enrol"))

    assert sorted((p.student or "", p.path) for p in photos) == sorted(
        [
            ("Ana_Lima", "math/enrol/Ana_Lima /x.jpg"),
            ("Dr. José Ñandú", "math/enrol/Dr. José Ñandú.jpg"),
            ("Zoë Müller", f"math/enrol/{decomposed}/1.png"),
            ("Zoë Müller", f"math/enrol/{decomposed}/2.jpg"),
            ("李 小龙", "math/enrol/李 小龙.JPG"),
        ]
    )
    assert all(place.store.read(photo.path) == b"photo" for photo in photos)


def test_names_that_cannot_be_keys_are_reported_and_the_rest_is_listed(place: Place) -> None:
    place.put("math 101/monday/a.jpg", "math/mon|day/a.jpg", "a__b/monday/a.jpg", "math/ok/a.jpg", "x...y/s/a.jpg")
    listing = place.store.scan()
    assert [photo.path for photo in listing.photos] == ["math/ok/a.jpg"]
    assert {folder.path for folder in listing.bad_folders} == {"a__b", "math 101", "math/mon|day", "x...y"}
    assert all("rename it" in folder.reason for folder in listing.bad_folders)


def test_photos_in_the_wrong_depth_are_reported(place: Place) -> None:
    place.put("a.jpg", "math/b.jpg", "math/monday/day/c.jpg", "math/enrol/Ana/more/d.jpg", "math/monday/e.jpg")
    listing = place.store.scan()
    assert [photo.path for photo in listing.photos] == ["math/monday/e.jpg"]
    assert [folder.path for folder in listing.bad_folders] == [".", "math", "math/enrol/Ana/more", "math/monday/day"]
    assert all("left out: move" in folder.reason for folder in listing.bad_folders)


def test_one_class_or_session_can_be_listed(place: Place) -> None:
    place.put("math/mon/a.jpg", "math/tue/b.jpg", "art/mon/c.jpg", "bad name/mon/d.jpg")
    assert paths(place.store, "math") == ["math/mon/a.jpg", "math/tue/b.jpg"]
    assert paths(place.store, "math", "tue") == ["math/tue/b.jpg"]
    assert [photo.path for photo in place.store.scan(session_name="mon").photos] == ["art/mon/c.jpg", "math/mon/a.jpg"]
    with pytest.raises(BadNameError):
        place.store.list_photos("../math")
    with pytest.raises(BadNameError):
        place.store.list_photos("math", "a b")


@pytest.mark.parametrize("inside", ["", "photos"])
def test_the_root_may_be_an_archive_or_a_folder_in_it(tmp_path: Path, inside: str) -> None:
    with zipfile.ZipFile(tmp_path / "term.zip", "w") as archive:
        archive.writestr(f"{inside}/Math101/s1/a.jpg".lstrip("/"), b"a photo")
    store = PhotoStore(photos=f"zip://{inside}::file://{tmp_path}/term.zip", crops="memory://crops")
    assert [photo.path for photo in store.scan().photos] == ["Math101/s1/a.jpg"]
    assert store.read("Math101/s1/a.jpg") == b"a photo"


def test_an_empty_root_is_an_empty_listing(place: Place) -> None:
    assert paths(place.store) == []


def test_a_missing_root_or_session_is_an_error_with_a_remedy(place: Place) -> None:
    place.put("math/monday/a.jpg")
    with pytest.raises(PhotoStoreError, match=r"'math/tuesday' in the photo root .* does not exist"):
        place.store.list_photos("math", "tuesday")
    place.remove("")
    with pytest.raises(
        PhotoStoreError, match=r"photos does not exist: create or mount it, or set ATTENDANSEE_PHOTOS\."
    ):
        place.store.list_photos()


def test_a_file_as_root_is_an_error(place: Place) -> None:
    place.put("math/monday/a.jpg")
    store = PhotoStore(photos=f"{place.store.photos}/math/monday/a.jpg", crops="crops")
    with pytest.raises(PhotoStoreError, match="check that it is a folder"):
        store.scan()


@pytest.mark.parametrize("root", ["", "nope://x", "missingstore://bucket"])
def test_an_unusable_root_is_one_clear_error(root: str) -> None:
    fsspec.register_implementation("missingstore", "no_such_package_here.Store", clobber=True)
    with pytest.raises(PhotoStoreError, match=r"set ATTENDANSEE_PHOTOS|correct it or install what it needs"):
        PhotoStore(photos=root, crops="crops").scan()


def test_settings_without_photos_make_a_store_that_says_so() -> None:
    store = PhotoStore.from_settings(Settings(photos=None))
    with pytest.raises(PhotoStoreError, match="ATTENDANSEE_PHOTOS"):
        store.read("math/monday/a.jpg")


def test_a_class_with_a_folder_that_cannot_be_listed_is_left_out_whole(local: Place) -> None:
    local.put("art/mon/a.jpg", "math/enrol/Ana.jpg", "math/mon/a.jpg")
    Path(local.root, "math/mon/loop").symlink_to("loop")
    listing = local.store.scan()
    assert [photo.path for photo in listing.photos] == ["art/mon/a.jpg"]
    assert listing.sessions == [SessionKey("art", "mon")]
    (left_out,) = listing.bad_folders
    assert left_out.reason.startswith("The class 'math' is left out. The folder 'math/mon' in the photo root ")
    with pytest.raises(PhotoStoreError, match=r"'math/mon' .* cannot be listed"):
        local.store.scan("math")


def test_a_folder_without_permission_fails_its_class(local: Place) -> None:
    local.put("art/mon/a.jpg", "math/mon/a.jpg")
    folder = Path(local.root).parent
    folder.chmod(0o755)
    store = PhotoStore(photos="photos", crops="crops")

    def listed() -> str:
        return " ".join(paths(store))

    assert as_nobody(folder, listed) == "art/mon/a.jpg math/mon/a.jpg"
    Path(local.root, "math").chmod(0)
    others = as_nobody(folder, listed)
    answer = as_nobody(folder, lambda: " ".join(paths(store, "math")))
    Path(local.root, "math").chmod(0o755)
    assert others == "art/mon/a.jpg"
    assert "The folder 'math' in the photo root photos cannot be listed (Permission" in answer


def test_a_pipe_a_dangling_link_and_an_undecodable_name_do_no_harm(local: Place) -> None:
    local.put("math/mon/a.jpg", "elsewhere.txt")
    session = Path(local.root, "math/mon")
    os.mkfifo(session / "pipe.jpg")
    (session / "dangling.jpg").symlink_to("nowhere.jpg")
    (session / "link.jpg").symlink_to("a.jpg")
    (session / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"photo")
    Path(local.root, os.fsdecode(b"b\xe9")).mkdir()

    listing = local.store.scan()

    assert [photo.path for photo in listing.photos] == ["math/mon/a.jpg", "math/mon/link.jpg"]
    assert [folder.path for folder in listing.bad_folders] == [r"b\udce9", r"math/mon/caf\udce9.jpg"]
    for folder in listing.bad_folders:
        (folder.path + folder.reason).encode()


def test_a_photo_that_goes_in_the_middle_of_the_listing_fails_it(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a disk is taken away: what was seen so far must not be taken for all there is."""
    local.put("math/mon/a.jpg", "math/mon/b.jpg")
    scandir = os.scandir

    def scan_and_lose(folder: Path) -> nullcontext[list[os.DirEntry]]:
        entries = list(scandir(folder))
        (folder / "b.jpg").unlink(missing_ok=True)
        return nullcontext(entries)

    monkeypatch.setattr(os, "scandir", scan_and_lose)
    with pytest.raises(PhotoStoreError, match="'math/mon' in the photo root"):
        local.store.scan()


class MoodyStore(MemoryFileSystem):
    """Remembers listings as object stores do, and fails as network stores do."""

    protocol = "moody"
    store: dict = {}  # noqa: RUF012 - fsspec's memory store keeps its files in a class attribute
    pseudo_dirs: list = [""]  # noqa: RUF012 - as above
    remembered: dict = {}  # noqa: RUF012 - as above
    error: Exception | None = None

    def ls(self, path, detail=True, **kwargs):
        if self.error and path.endswith("monday"):
            raise self.error
        if path not in self.remembered:
            self.remembered[path] = super().ls(path, detail=detail, **kwargs)
        return self.remembered[path]

    def invalidate_cache(self, path=None):
        self.remembered.clear()

    def cat_file(self, path, start=None, end=None, **kwargs):
        if self.error:
            raise self.error
        return super().cat_file(path, start, end, **kwargs)


@pytest.fixture
def moody() -> Iterator[Place]:
    fsspec.register_implementation("moody", MoodyStore, clobber=True)
    yield Place("moody://photos", "moody://crops")
    MoodyStore.error = None
    MoodyStore.store.clear()
    MoodyStore.remembered.clear()


def test_a_new_photo_is_seen_in_a_store_that_remembers_listings(moody: Place) -> None:
    moody.put("math/monday/a.jpg")
    assert paths(moody.store) == ["math/monday/a.jpg"]
    moody.put("math/monday/b.jpg", "art/monday/c.jpg")
    assert paths(moody.store) == ["art/monday/c.jpg", "math/monday/a.jpg", "math/monday/b.jpg"]


@pytest.mark.parametrize("error", [ConnectionError("gone"), TimeoutError("slow"), RuntimeError("403 Forbidden")])
def test_a_failing_network_is_never_an_empty_or_vanished_photo(moody: Place, error: Exception) -> None:
    moody.put("art/monday/a.jpg")
    MoodyStore.error = error
    with pytest.raises(PhotoStoreError, match=f"cannot be listed .*{error}"):
        moody.store.scan()
    with pytest.raises(PhotoStoreError, match=f"cannot be read .*{error}"):
        moody.store.read("art/monday/a.jpg")


@pytest.mark.parametrize(
    "info",
    [
        {"mtime": 1.5e9},
        {"LastModified": "2017-07-14T02:40:00Z"},
        {"updated": "2017-07-14T02:40:00.000Z"},
        {"last_modified": datetime(2017, 7, 14, 2, 40, tzinfo=timezone.utc)},
    ],
)
def test_stores_tell_the_time_of_change_in_their_own_ways(moody: Place, info: dict) -> None:
    moody.put("math/monday/a.jpg")
    listed = MoodyStore.ls

    class Telling(MoodyStore):
        protocol = "moody"

        def ls(self, path, detail=True, **kwargs):
            return [{**entry, **info} for entry in listed(self, path, detail=detail, **kwargs)]

    fsspec.register_implementation("moody", Telling, clobber=True)
    assert next(moody.store.list_photos()).modified == 1.5e9


# --- reading


def test_a_vanished_photo_is_its_own_error_and_a_vanished_root_another(place: Place) -> None:
    place.put("math/monday/a.jpg", "math/monday/b.jpg")
    place.remove("math/monday/a.jpg")
    assert place.store.read("math/monday/b.jpg") == b"photo"
    with pytest.raises(PhotoError, match=r"'math/monday/a.jpg' is no longer in the photo root"):
        place.store.read("math/monday/a.jpg")
    place.remove("")
    with pytest.raises(PhotoStoreError, match="does not exist"):
        place.store.read("math/monday/b.jpg")


outside = st.one_of(
    st.sampled_from(
        ["..", "../x.jpg", "a/../../x", "/etc/passwd", "a//b", "", ".", "a/./b", "a/..", "a\0b", "/", "a/"]
    ),
    st.lists(st.sampled_from(["..", "a", "", "."]), min_size=2)
    .map("/".join)
    .filter(lambda path: any(part in ("", ".", "..") for part in path.split("/"))),
)


@given(path=outside)
def test_no_path_leads_out_of_the_roots(path: str) -> None:
    store = PhotoStore(photos="memory://photos", crops="memory://crops")
    for use in (store.read, store.read_crop, store.delete_crop, lambda p: store.write_crop(f"{p}/..", face())):
        with pytest.raises(PhotoStoreError, match=r"without '\.\.'"):
            use(path)


# --- the session's date


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("date: 2026-09-01", date(2026, 9, 1)),
        ("date: '2026-09-01'\nteacher: Ana", date(2026, 9, 1)),
        ("date: 2026-09-01T08:30:00", date(2026, 9, 1)),
        ("2026-09-01", date(2026, 9, 1)),
        ("", None),
        ("teacher: Ana", None),
        ("date:", None),
    ],
)
def test_session_yaml_gives_the_date(place: Place, text: str, expected: date | None) -> None:
    place.put("math/monday/session.yaml", content=text.encode())
    assert place.store.session_date("math", "monday") == expected


def test_a_session_without_session_yaml_has_no_date(place: Place) -> None:
    place.put("math/monday/a.jpg")
    assert place.store.session_date("math", "monday") is None


@pytest.mark.parametrize(
    "content",
    [
        b"date: 2026-13-45",
        b"date: tomorrow",
        b"day: 2026-09-01",
        b"date: 20260901",
        b"date: [2026, 9, 1]",
        b"- date",
        b"date: {",
        b"\xff\xfe\x00",
        b"\x89PNG\r\n\x1a\n",
        b"[" * 100_000,
        b"!!python/object/apply:os.system ['true']",
    ],
)
def test_a_wrong_session_yaml_is_one_sentence_naming_the_file(local: Place, content: bytes) -> None:
    local.put("math/monday/session.yaml", content=content)
    with pytest.raises(PhotoError, match=r"^math/monday/session\.yaml [^\n]*`date: 2026-09-01`\.$"):
        local.store.session_date("math", "monday")


# --- crops


def face(brightness: int = 200) -> np.ndarray:
    rgb = np.zeros((40, 30, 3), np.uint8)
    rgb[..., 0] = brightness
    return rgb


def test_a_crop_comes_back_as_it_was_and_can_be_replaced_and_erased(place: Place) -> None:
    path = place.store.write_crop("math/monday/7", face())
    assert path == "math/monday/7.jpg"
    assert place.store.write_crop("math/monday/7", face(100)) == path
    image = Image.open(io.BytesIO(place.store.read_crop(path)))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    assert np.abs(np.asarray(image).astype(int) - face(100)).max() <= 3
    place.store.delete_crop(path)
    place.store.delete_crop(path)
    with pytest.raises(PhotoStoreError, match=r"'math/monday/7.jpg' cannot be read .*restore"):
        place.store.read_crop(path)


def test_crops_are_private_and_other_folders_keep_their_permissions(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(0)
    try:
        store = PhotoStore(photos="photos", crops=str(tmp_path / "home" / "crops"))
        store.write_crop("math/monday/7", face())
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in [tmp_path, *tmp_path.rglob("*")]}
    assert modes == {
        tmp_path.name: 0o755,
        "home": 0o700,
        "crops": 0o700,
        "math": 0o700,
        "monday": 0o700,
        "7.jpg": 0o600,
    }


def test_a_failed_write_is_an_error_and_leaves_nothing_behind(local: Place, tmp_path: Path) -> None:
    (tmp_path / "crops/math/7.jpg").mkdir(parents=True)
    with pytest.raises(PhotoStoreError, match=r"'math/7.jpg' cannot be written to .*crops .*ATTENDANSEE_HOME"):
        local.store.write_crop("math/7", face())
    assert [path.name for path in (tmp_path / "crops/math").iterdir()] == ["7.jpg"]
    (tmp_path / "file").touch()
    with pytest.raises(PhotoStoreError, match="cannot be written"):
        PhotoStore(photos="photos", crops=str(tmp_path / "file")).write_crop("math/7", face())


def test_a_reader_never_sees_half_a_crop(local: Place) -> None:
    path = local.store.write_crop("math/7", face(0))
    seen = {local.store.read_crop(path)}
    local.store.write_crop("math/7", face(255))
    seen.add(local.store.read_crop(path))

    def write() -> None:
        for index in range(200):
            local.store.write_crop("math/7", face(255 * (index % 2)))

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        assert local.store.read_crop(path) in seen
    writer.join()
    assert len(seen) == 2


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_only_rgb_bytes_are_taken_as_a_crop(local: Place, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        local.store.write_crop("math/7", wrong)


# --- fingerprint

photo_files = st.builds(
    PhotoFile,
    class_name=st.just("math"),
    session_name=st.just("monday"),
    path=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    student=st.none(),
    size=st.integers(0, 10**12),
    modified=st.none() | st.floats(0, 2e9),
)


@given(files=st.lists(photo_files), data=st.data())
def test_the_fingerprint_depends_on_what_is_there_and_not_on_its_order(files: list[PhotoFile], data) -> None:
    digest = fingerprint(files)
    assert len(digest) == 16
    assert fingerprint(data.draw(st.permutations(files))) == digest
    if files:
        first, *rest = files
        for changed in (
            replace(first, size=first.size + 1),
            replace(first, path=first.path + "x"),
            replace(first, modified=(first.modified or 0) + 1),
        ):
            assert fingerprint([changed, *rest]) != digest
        assert fingerprint(rest) != digest


def test_listing_brings_no_heavy_import() -> None:
    code = (
        "import sys, pipelines.sensors, pipelines.resources.photo_store\n"
        "print([m for m in ('PIL', 'cv2', 'tensorflow', 'sklearn', 'scipy', 'dlib', 'upath') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
