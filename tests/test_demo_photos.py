"""The demo's photos."""

import datetime

import pytest
import yaml
from PIL import Image

from pipelines import demo_photos
from pipelines.demo_photos import CLASS_NAME, FACES, make_demo_photos
from pipelines.errors import PhotoError


@pytest.fixture(scope="module")
def photo_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    make_demo_photos(folder)
    return folder


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_every_student_has_a_portrait_and_every_session_a_date(photo_root):
    class_folder = photo_root / CLASS_NAME
    assert [path.stem for path in files_of(class_folder / "enrol")] == sorted(FACES)
    sessions = [folder for folder in class_folder.iterdir() if folder.name != "enrol"]
    assert len(sessions) == 3
    for session in sessions:
        date = yaml.safe_load((session / "session.yaml").read_text())["date"]
        assert date == datetime.date.fromisoformat(session.name)
        assert list(session.glob("*.jpg"))


def test_photos_are_readable_and_all_different(photo_root):
    photos = [path for path in files_of(photo_root) if path.suffix == ".jpg"]
    assert len({path.read_bytes() for path in photos}) == len(photos)
    for path in photos:
        with Image.open(path) as photo:
            photo.load()
            assert photo.mode == "RGB"
            assert min(photo.size) >= 250


def test_a_second_call_writes_nothing(photo_root):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files_of(photo_root)}
    make_demo_photos(photo_root)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files_of(photo_root)} == before


def test_a_lost_or_damaged_photo_is_made_again_with_the_same_bytes(photo_root):
    lost, damaged = (photo_root / CLASS_NAME / "enrol" / f"{name}.jpg" for name in ("Ada", "Fay"))
    before = lost.read_bytes(), damaged.read_bytes()
    lost.unlink()
    damaged.write_bytes(before[1][:1000])
    make_demo_photos(photo_root)
    assert (lost.read_bytes(), damaged.read_bytes()) == before
    assert all(not path.name.startswith(".") for path in files_of(photo_root))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_photos, "find_spec", lambda _: None)
    with pytest.raises(PhotoError, match="insightface is missing"):
        make_demo_photos(tmp_path)
