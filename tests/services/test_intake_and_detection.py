"""Photos from a folder to rows and crops, with the real detector, on a photo that a package ships."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
from PIL import Image

from pipelines.database import catalog, crops
from pipelines.errors import PhotoStoreError
from pipelines.partitions import parse_session_key
from pipelines.resources.face_detector import FaceDetector
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.decisions import DecisionService
from pipelines.services.detection import DetectionService
from pipelines.services.intake import register_session_images, unregistered_photos
from pipelines.settings import Settings

KEY = parse_session_key("Math101__s1")
ENROL_KEY = parse_session_key("Math101__enrol")


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    skimage_data = pytest.importorskip("skimage.data")
    return Image.fromarray(skimage_data.astronaut())


@pytest.fixture
def root(tmp_path: Path, astronaut: Image.Image) -> Path:
    session = tmp_path / "photos" / "Math101" / "s1"
    session.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x132] = "2026:09:07 10:00:00"
    astronaut.save(session / "a.jpg", quality=95, exif=exif)
    return tmp_path / "photos"


@pytest.fixture
def store(root: Path, tmp_path: Path) -> PhotoStore:
    return PhotoStore(photos=str(root), crops=str(tmp_path / "crops"))


@pytest.fixture
def detect(database, store):
    settings = Settings()
    service = DetectionService(database, store, FaceDetector.from_settings(settings), settings)

    def run(key=KEY):
        register_session_images(database, store, settings, key)
        return service.detect_session(key)

    return run


def register(database, store, key=KEY):
    return register_session_images(database, store, Settings(), key)


def test_a_photo_is_registered_once_with_its_size_and_date(database, store):
    first, again = register(database, store), register(database, store)
    assert (first.photos, first.new, again.photos, again.new) == (1, 1, 1, 0)
    with database.connection() as connection:
        row = connection.execute(
            "SELECT path, width, height, taken_at::date::text, held_on::text "
            "FROM images JOIN sessions ON sessions.id = session_id"
        ).fetchone()
    assert row == ("Math101/s1/a.jpg", 512, 512, "2026-09-07", "2026-09-07")


def test_a_renamed_copy_is_not_a_second_photo(database, store, root):
    register(database, store)
    shutil.copy(root / "Math101/s1/a.jpg", root / "Math101/s1/copy.jpg")
    assert register(database, store).duplicates == 1
    (root / "Math101/s1/a.jpg").unlink()
    report = register(database, store)
    assert (report.photos, report.new, report.removed) == (1, 0, 0)
    with database.connection() as connection:
        session = catalog.find_session(connection, KEY)
        assert [image.path for image in catalog.session_images(connection, session.id)] == ["Math101/s1/copy.jpg"]


def test_a_removed_photo_no_longer_counts_and_counts_again_when_it_is_back(database, store, root, detect):
    assert detect().crops == 1
    photo = root / "Math101/s1/a.jpg"
    data = photo.read_bytes()
    photo.unlink()
    assert register(database, store).removed == 1
    assert detect().crops == 0
    photo.write_bytes(data)
    assert (register(database, store).photos, detect().new_crops, detect().crops) == (1, 0, 1)


def test_a_bad_photo_fails_alone_with_its_reason(database, store, root, detect):
    (root / "Math101/s1/broken.jpg").write_bytes(b"this is no photo")
    report = detect()
    assert report.crops == 1
    assert list(report.refused) == ["Math101/s1/broken.jpg"]
    assert "broken.jpg" in report.refused["Math101/s1/broken.jpg"]
    assert unregistered_photos(database, store, KEY) == []


def remarks(database) -> list[str]:
    with database.connection() as connection:
        return catalog.file_remarks(connection, "Math101")


def test_a_session_file_that_cannot_be_read_leaves_the_date_to_the_photos(database, store, root):
    session_file = root / "Math101/s1/session.yaml"
    session_file.write_text("date: next Monday")
    report = register(database, store)
    sentence = "Math101/s1/session.yaml does not give a date: write it as `date: 2026-09-01`."
    assert report.refused == {"Math101/s1/session.yaml": sentence}
    assert (report.photos, remarks(database)) == (1, [sentence])
    with database.connection() as connection:
        assert str(catalog.find_session(connection, KEY).held_on) == "2026-09-07"
    session_file.write_text("date: 2026-09-01")
    assert register(database, store).refused == {}
    assert remarks(database) == []


def test_files_in_the_wrong_place_are_told_until_they_are_put_right(database, store, root, detect):
    for folder in ("s2", "enrol"):
        (root / "Math101" / folder).mkdir()
    shutil.copy(root / "Math101/s1/a.jpg", root / "Math101/s2/b.jpg")
    # A portrait taken from a class photo is as it should be; two students of one portrait are not.
    shutil.copy(root / "Math101/s1/a.jpg", root / "Math101/enrol/Eileen.jpg")
    shutil.copy(root / "Math101/s1/a.jpg", root / "Math101/enrol/Zoe.jpg")
    Image.new("RGB", (200, 200), "grey").save(root / "Math101/enrol/Nobody.jpg")
    for key in (ENROL_KEY, KEY, parse_session_key("Math101__s2")):
        detect(key)
    no_face, no_portrait, equal, twice = remarks(database)
    assert no_face.startswith("No face was found in the portrait Math101/enrol/Nobody.jpg")
    assert no_portrait.startswith("Nobody has no portrait that can be used, so nobody is recognised as Nobody: add one")
    assert equal.startswith("Math101/enrol/Zoe.jpg is the same photo as Math101/enrol/Eileen.jpg, so Zoe is not added")
    assert twice.startswith("Math101/s1/a.jpg and Math101/s2/b.jpg are one photo, which counts in each session")

    for path in ("enrol/Zoe.jpg", "enrol/Nobody.jpg", "s2/b.jpg"):
        (root / "Math101" / path).unlink()
    for key in (ENROL_KEY, parse_session_key("Math101__s2")):
        detect(key)
    assert remarks(database) == []


def test_a_photo_that_arrives_after_the_registration_is_noticed(database, store, root, astronaut):
    register(database, store)
    astronaut.rotate(3).save(root / "Math101/s1/late.jpg")
    assert unregistered_photos(database, store, KEY) == ["Math101/s1/late.jpg"]


def test_a_root_that_is_gone_removes_nothing(database, store, root):
    register(database, store)
    shutil.rmtree(root)
    with pytest.raises(PhotoStoreError):
        register(database, store)
    with database.connection() as connection:
        session = catalog.find_session(connection, KEY)
        assert len(catalog.session_images(connection, session.id)) == 1


def test_a_face_is_found_once_and_its_crop_is_private(database, store, detect, tmp_path):
    first, again = detect(), detect()
    assert (first.photos_searched, first.new_crops, first.usable) == (1, 1, 1)
    assert (again.photos_searched, again.photos_skipped, again.new_crops) == (0, 1, 0)
    (crop,) = (tmp_path / "crops").rglob("*.jpg")
    assert crop.stat().st_mode & 0o777 == 0o600


def test_a_crop_that_somebody_deleted_is_there_again(detect, tmp_path):
    assert detect().restored_crops == 0
    (crop,) = (tmp_path / "crops").rglob("*.jpg")
    before = crop.read_bytes()
    crop.unlink()
    again = detect()
    assert (again.photos_searched, again.restored_crops, crop.read_bytes() == before) == (0, 1, True)
    shutil.rmtree(tmp_path / "crops")
    assert (detect().restored_crops, crop.read_bytes() == before) == (1, True)


def test_a_newer_detector_keeps_the_identity_of_the_crops_it_finds_again(database, store, detect):
    detect()
    with database.connection() as connection:
        session = catalog.find_session(connection, KEY)
        (before,) = crops.session_crops(connection, session.id)
        connection.execute("UPDATE images SET searched_with = 'an older one'")
        connection.execute("UPDATE face_crops SET x = x + 3")
        crops.insert_crop(connection, before.image_id, before.face, None, sharpness=1, yaw=0)
        connection.execute("UPDATE face_crops SET x = 0, y = 0 WHERE id <> %s", [before.id])
    assert detect().photos_searched == 1
    with database.connection() as connection:
        (after,) = crops.session_crops(connection, session.id)
    assert (after.id, after.face.box) == (before.id, before.face.box)


def test_the_quality_gate_marks_crops_and_drops_none(database, store, monkeypatch):
    register(database, store)
    for smallest, usable in (("24", 1), ("5000", 0), ("24", 1)):
        monkeypatch.setenv("ATTENDANSEE_QUALITY_MIN_SIZE", smallest)
        settings = Settings()
        service = DetectionService(database, store, FaceDetector.from_settings(settings), settings)
        report = service.detect_session(KEY)
        assert (report.crops, report.usable) == (1, usable)


def test_a_portrait_makes_a_named_student_with_a_confirmed_crop(database, store, root, detect, astronaut):
    (root / "Math101/enrol").mkdir()
    astronaut.save(root / "Math101/enrol/Ада Лавлейс.jpg")
    for _ in range(2):
        assert detect(ENROL_KEY).crops == 1
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT st.name, st.provisional FROM confirmed_crops c JOIN students st ON st.id = c.student_id"
        ).fetchall()
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (1,)
    assert rows == [("Ада Лавлейс", False)]


@pytest.mark.parametrize(("copies", "words"), [(0, "No face"), (2, "several faces")])
def test_a_portrait_without_one_main_face_is_refused_with_the_remedy(database, root, detect, astronaut, copies, words):
    (root / "Math101/enrol").mkdir()
    face = astronaut.crop((100, 0, 350, 300))
    canvas = Image.new("RGB", (600, 300), "gray")
    for number in range(copies):
        canvas.paste(face, (number * 300, 0))
    canvas.save(root / "Math101/enrol/Ben.png")
    report = detect(ENROL_KEY)
    assert report.crops == 0
    assert words in report.refused["Math101/enrol/Ben.png"]


def test_the_largest_face_of_a_portrait_wins(database, root, detect, astronaut):
    (root / "Math101/enrol").mkdir()
    face = astronaut.crop((100, 0, 350, 300))
    canvas = Image.new("RGB", (600, 300), "gray")
    canvas.paste(face, (0, 0))
    canvas.paste(face.resize((100, 120)), (400, 100))
    canvas.save(root / "Math101/enrol/Ben.png")
    assert detect(ENROL_KEY).crops == 1
    with database.connection() as connection:
        session = catalog.find_session(connection, ENROL_KEY)
        (crop,) = crops.session_crops(connection, session.id)
    assert crop.x < 300
    assert np.isclose(crop.landmarks[0], crop.x + crop.width * 0.31, atol=crop.width * 0.2)


def students_of(database) -> dict[str, int]:
    with database.connection() as connection:
        return dict(connection.execute("SELECT name, id FROM students WHERE merged_into IS NULL").fetchall())


def test_a_portrait_stays_with_its_student_who_was_renamed_or_merged(database, store, root, detect, astronaut):
    (root / "Math101/enrol").mkdir()
    astronaut.save(root / "Math101/enrol/ann.jpg")
    detect(ENROL_KEY)
    decide = DecisionService("a teacher")
    ann = students_of(database)["ann"]
    decide.rename(ann, "Ann Lee")
    for name in ("ann.jpg", "Ann Lee.jpg", "ann.jpg"):
        next((root / "Math101/enrol").iterdir()).rename(root / "Math101/enrol" / name)
        detect(ENROL_KEY)
        assert students_of(database) == {"Ann Lee": ann}
    # Another student gets the name that the portrait's file still has.
    with database.connection() as connection:
        bob = catalog.ensure_named_student(connection, catalog.find_class(connection, "Math101"), "bob")
    decide.rename(bob, "ann")
    detect(ENROL_KEY)
    with database.connection() as connection:
        assert connection.execute("SELECT student_id FROM confirmed_crops").fetchall() == [(ann,)]
    decide.merge(ann, bob)
    detect(ENROL_KEY)
    assert students_of(database) == {"ann": bob}
    with database.connection() as connection:
        assert connection.execute("SELECT student_id FROM confirmed_crops").fetchall() == [(bob,)]
    # A second portrait under the name of the student who was merged.
    astronaut.rotate(5).save(root / "Math101/enrol/Ann Lee.jpg")
    detect(ENROL_KEY)
    assert students_of(database) == {"ann": bob}


@pytest.mark.parametrize("key", [KEY, ENROL_KEY])
def test_the_quality_gate_holds_no_crop_while_it_waits_for_the_class(made_class, database, store, key):
    """A search of the same photos holds the class and then needs the crops: both waited for each other."""
    if key.is_enrolment:
        made_class.enrol("Math101", "Ada")
    else:
        made_class.session(str(key), [["Ada"]])
    settings = Settings().model_copy(update={"quality_min_size": 81})
    service = DetectionService(database, store, FaceDetector.from_settings(settings), settings)
    with database.connection() as connection:
        connection.execute("UPDATE images SET searched_with = %s", [service.detector.version])
        catalog.record_photo_root(connection, "Math101", store.photos)
    with database.connection() as holder, ThreadPoolExecutor(1) as pool:
        catalog.lock_class(holder, catalog.find_class(holder, "Math101"))
        report = pool.submit(service.detect_session, key)
        deadline = monotonic() + 10
        while not holder.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone():
            assert not report.done(), report.result()
            assert monotonic() < deadline, "nobody waits for the class"
            sleep(0.02)
        holder.execute("SELECT 1 FROM face_crops FOR UPDATE NOWAIT")
        holder.commit()
        assert report.result(10).unusable_reasons != {}
