"""What people say lasts when photos vanish and come back, and when a photo is saved again with other bytes."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.database import catalog, crops
from pipelines.demo_photos import CLASS_NAME, FACES, make_demo_photos
from pipelines.faces.replaced_photos import EarlierFace, faces_found_again
from pipelines.partitions import SessionKey, parse_session_key
from pipelines.resources.face_detector import FaceDetector
from pipelines.resources.photo_store import PhotoStore
from pipelines.services import EmbeddingService
from pipelines.services.attendance import AttendanceService
from pipelines.services.context import ServiceContext, default_context
from pipelines.services.decisions import DecisionService
from pipelines.services.detection import DetectionReport, DetectionService, cut_out
from pipelines.services.intake import register_session_images
from pipelines.services.session_assignment import AssignmentConfig, SessionAssignmentService
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService
from pipelines.settings import get_settings

FIRST, SECOND = "2026-09-07", "2026-09-14"
PHOTO = f"{FIRST}/photo_1.jpg"
# The first photo is that many times larger than the one that FACES is about.
SCALE = 1.1


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make_demo_photos(folder)
    return folder / CLASS_NAME


@pytest.fixture
def photos(demo: Path, tmp_path: Path) -> Path:
    """A class with one photo in its only session; nobody is enrolled."""
    folder = tmp_path / "photos" / CLASS_NAME
    (folder / FIRST).mkdir(parents=True)
    shutil.copy(demo / PHOTO, folder / PHOTO)
    return folder


@pytest.fixture
def context(database, photos: Path, tmp_path: Path) -> ServiceContext:
    store = PhotoStore(photos=str(photos.parent), crops=str(tmp_path / "crops"))
    return ServiceContext(database, store, default_context().models, get_settings())


@pytest.fixture
def run(context: ServiceContext) -> Callable[..., DetectionReport]:
    """From photos to attendance, as the assets go."""
    detector = FaceDetector.from_settings(context.settings)

    def process(name: str = FIRST) -> DetectionReport:
        key = SessionKey(CLASS_NAME, name)
        register_session_images(context.database, context.store, context.settings, key)
        report = DetectionService(context.database, context.store, detector, context.settings).detect_session(key)
        embedding = EmbeddingService("dlib", context=context)
        assert embedding.embed_session(key).errors == {}
        SessionClusteringService(context.database, "dlib", embedding.version).cluster_session(key, ClusteringConfig())
        SessionAssignmentService(context.database, "dlib", embedding.version).assign_session(key, AssignmentConfig())
        AttendanceService(context.database, "dlib").register_session(key)
        return report

    return process


@pytest.fixture
def decide() -> DecisionService:
    return DecisionService("a teacher")


@pytest.fixture
def faces(database) -> Callable[..., dict[str, int]]:
    """Reads which crop of the first photo shows whom; shift, scale: what was done to the photo."""

    def read(shift: tuple[float, float] = (0, 0), scale: float = SCALE) -> dict[str, int]:
        found = {}
        with database.connection() as connection:
            session = catalog.find_session(connection, SessionKey(CLASS_NAME, FIRST))
            for crop in crops.session_crops(connection, session.id):
                if not crop.path.endswith(PHOTO):
                    continue
                middle = np.array([crop.x + crop.width / 2, crop.y + crop.height / 2]) + shift
                distance = {
                    n: np.hypot(*(np.array([x + w / 2, y + h / 2]) * scale - middle))
                    for n, (x, y, w, h) in FACES.items()
                }
                nearest = min(distance, key=lambda name: distance[name])
                if distance[nearest] < 60:
                    found[nearest] = crop.id
        return found

    return read


def named(database) -> dict[int, tuple[str, str | None, bool | None]]:
    """Crop -> state, student's name, whether a visitor: of present photos."""
    with database.connection() as connection:
        rows = connection.execute(
            """SELECT a.crop_id, a.state, st.name, st.hidden FROM assignments a
            JOIN face_crops f ON f.id = a.crop_id JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL
            LEFT JOIN students st ON st.id = a.student_id"""
        ).fetchall()
    return {crop_id: (state, name, hidden) for crop_id, state, name, hidden in rows}


def student_of(database, crop_id: int) -> int:
    with database.connection() as connection:
        return connection.execute("SELECT student_id FROM assignments WHERE crop_id = %s", [crop_id]).fetchone()[0]


def students(database) -> set[str]:
    with database.connection() as connection:
        return {name for (name,) in connection.execute("SELECT name FROM students").fetchall()}


def words(database) -> list[list[tuple]]:
    """What counts of what people said of crops."""
    views = ("confirmed_crops", "rejected_students", "unassigned_crops", "not_faces")
    with database.connection() as connection:
        return [connection.execute(f"SELECT * FROM {view} ORDER BY 1, 2").fetchall() for view in views]


def remarks(database) -> list[str]:
    with database.connection() as connection:
        return catalog.file_remarks(connection, CLASS_NAME)


def saved_again(
    path: Path, change: Callable[[Image.Image], Image.Image] = lambda photo: photo, quality: int = 60
) -> bytes:
    """Write the photo anew; returns the bytes that were there."""
    before = path.read_bytes()
    with Image.open(io.BytesIO(before)) as photo:
        changed = change(photo.convert("RGB"))
    changed.save(path, "JPEG", quality=quality)
    assert path.read_bytes() != before
    return before


# Photos that vanish and come back


def test_a_name_and_a_visitor_outlast_a_photo_that_was_away(database, photos, run, decide, faces):
    run()
    found = faces()
    ada, bea = (student_of(database, found[name]) for name in ("Ada", "Bea"))
    decide.rename(ada, "Ada")
    decide.hide(bea)
    before = named(database)
    content = (photos / PHOTO).read_bytes()
    (photos / PHOTO).unlink()
    for _ in range(2):
        assert run().crops == 0
    # Nobody has spoken of the others: they are made anew when they are seen again.
    assert len(students(database)) == 2
    (photos / PHOTO).write_bytes(content)
    run()
    after = named(database)
    assert faces() == found
    assert after[found["Ada"]] == before[found["Ada"]] == ("assigned", "Ada", False)
    assert after[found["Bea"]] == before[found["Bea"]]
    assert after[found["Bea"]][2]
    # A name given to a student confirms no face: a word, or a portrait, moves it.
    assert words(database)[0] == []
    decide.reject(found["Ada"], ada)
    run()
    assert named(database)[found["Ada"]][1] not in {"Ada", None}


def test_of_two_who_were_merged_before_their_photo_went_one_comes_back(database, photos, run, decide, faces):
    run()
    found = faces()
    ada, bea = (student_of(database, found[name]) for name in ("Ada", "Bea"))
    decide.merge(ada, bea)
    before = {name: named(database)[found[name]][1] for name in ("Ada", "Bea")}
    content = (photos / PHOTO).read_bytes()
    (photos / PHOTO).unlink()
    run()
    (photos / PHOTO).write_bytes(content)
    run()
    assert {name: named(database)[found[name]][1] for name in ("Ada", "Bea")} == before


@pytest.mark.parametrize("said", ["name", "visitor"])
def test_nobody_unknown_of_a_session_processed_meanwhile_takes_over_who_comes_back(
    made_class, database, identities_of, decide, said
):
    def process(*keys: str) -> None:
        for key in map(parse_session_key, keys):
            SessionClusteringService(database, "dlib", "v").cluster_session(key, ClusteringConfig())
            SessionAssignmentService(database, "dlib", "v").assign_session(key, AssignmentConfig())
            AttendanceService(database, "dlib").register_session(key)

    made = made_class.session("m__1", [["ann", "bob"], ["ann"]])
    process("m__1")
    ann = student_of(database, made[0, "ann"])
    if said == "name":
        decide.rename(ann, "Ann")
    else:
        decide.hide(ann)
    name = identities_of(made)[0, "ann"]
    with database.connection() as connection:
        session = catalog.find_session(connection, parse_session_key("m__1"))
        paths = [image.path for image in catalog.session_images(connection, session.id)]
        catalog.mark_removed(connection, session.id, paths)  # made photos have their paths for hashes
    second = made_class.session("m__2", [["ann", "cem"]])
    process("m__1", "m__2")
    assert identities_of(second)[0, "ann"] != name
    with database.connection() as connection:
        for path in paths:
            catalog.place_image(connection, session.id, path, path, None)
    process("m__1", "m__2")
    assert identities_of(made) == {**identities_of(made), (0, "ann"): name, (1, "ann"): name}
    assert identities_of(second)[0, "ann"] == name


def test_a_student_whose_portrait_cannot_be_used_is_told_of_though_a_photo_that_is_gone_showed_them(
    database, photos, run, decide, faces
):
    (photos / "enrol").mkdir()
    run()
    decide.rename(student_of(database, faces()["Ada"]), "Ada")
    (photos / "enrol" / "Ada.jpg").write_bytes(b"no photo")
    run("enrol")
    told = "Ada has no portrait that can be used"
    assert not any(remark.startswith(told) for remark in remarks(database))
    (photos / PHOTO).unlink()
    run()
    assert any(remark.startswith(told) for remark in remarks(database))


# Photos that are saved again


@pytest.fixture
def spoken(database, run, decide, faces) -> dict[str, int]:
    """Something has been said of every face but Fay's; crop of each."""
    run()
    found = faces()
    assert set(found) == set(FACES)
    decide.rename(student_of(database, found["Ada"]), "Ada")
    carl = student_of(database, found["Carl"])
    decide.rename(carl, "Carl")
    decide.assign_crops([found["Ada"]], student_of(database, found["Ada"]))
    decide.assign(found["Bea"], carl)
    decide.reject(found["Dan"], carl)
    decide.unassign(found["Carl"])
    decide.not_a_face([found["Emil"]])
    decide.rename(student_of(database, found["Fay"]), "Fay")
    run()
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda photo: photo,
        lambda photo: photo.resize((photo.width // 2, photo.height // 2)),
        lambda photo: photo.convert("L"),
        lambda photo: photo.crop((30, 20, photo.width, photo.height)),
    ],
    ids=["recompressed", "half the size", "grey", "cut a little"],
)
def test_what_was_said_goes_with_the_faces_of_a_photo_that_was_saved_again(
    context, database, photos, run, decide, spoken, change
):
    before, said, who = named(database), words(database), students(database)
    saved_again(photos / PHOTO, change)
    report = run()
    assert (report.carried_crops, report.new_crops, report.left_behind) == (6, 0, {})
    assert words(database) == said
    assert named(database) == before
    assert students(database) == who
    assert remarks(database) == []
    # One file for each crop, and none of the earlier photo's.
    with database.connection() as connection:
        session = catalog.find_session(connection, SessionKey(CLASS_NAME, FIRST))
        rows = crops.session_crops(connection, session.id)
    assert {row.crop_path for row in rows} == context.store.crop_paths(f"{CLASS_NAME}/{FIRST}")
    # All decisions make the same state again, and each can be taken back.
    decide.replay(CLASS_NAME)
    assert named(database) == before
    with database.connection() as connection:
        (last,) = connection.execute("SELECT max(id) FROM decisions WHERE kind = 'not_a_face'").fetchone()
    decide.undo(last)
    run()
    assert named(database)[spoken["Emil"]][0] == "assigned"


def test_a_photo_that_was_turned_upright_in_its_pixels_keeps_what_was_said(database, photos, run, decide, faces):
    with Image.open(photos / PHOTO) as photo:
        upright = photo.convert("RGB")
    exif = Image.Exif()
    exif[0x112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(photos / PHOTO, "JPEG", quality=92, exif=exif)
    run()
    found = faces()
    decide.assign(found["Ada"], student_of(database, found["Ada"]))
    said = words(database)
    upright.save(photos / PHOTO, "JPEG", quality=92)
    assert run().carried_crops == 6
    assert words(database) == said


def test_faces_that_were_cut_off_are_told_by_name_and_count_again_in_the_earlier_photo(
    database, photos, run, spoken, decide, faces
):
    said = words(database)
    # Ada and Bea, confirmed as Ada and Carl, sit at the left.
    cut = 430 * SCALE
    earlier = saved_again(photos / PHOTO, lambda photo: photo.crop((int(cut), 0, photo.width, photo.height)))
    report = run()
    assert (report.carried_crops, list(report.left_behind)) == (4, [f"{CLASS_NAME}/{PHOTO}"])
    (remark,) = remarks(database)
    assert remark == report.left_behind[f"{CLASS_NAME}/{PHOTO}"]
    assert "who was confirmed there (Ada, Carl) does not count" in remark
    assert faces(shift=(int(cut), 0)) == {name: spoken[name] for name in ("Carl", "Dan", "Emil", "Fay")}
    # Told until it is settled.
    with database.connection() as connection:
        session_id = catalog.find_session(connection, SessionKey(CLASS_NAME, FIRST)).id
        ada = catalog.student_named(connection, catalog.find_class(connection, CLASS_NAME), "Ada")
    decide.mark_attendance(session_id, ada, "present")
    assert "(Carl)" in remarks(database)[0]

    (photos / PHOTO).write_bytes(earlier)
    report = run()
    assert (report.carried_crops, report.new_crops, report.left_behind) == (4, 0, {})
    assert faces() == spoken
    assert words(database) == said
    assert remarks(database) == []


def test_another_picture_in_a_photos_place_takes_over_nothing_and_says_so(database, photos, run, spoken, decide):
    # As many pixels, and a face as well: that it lies at a path is no evidence of whose it is.
    guest = pytest.importorskip("skimage.data").astronaut()
    saved_again(photos / PHOTO, lambda photo: Image.fromarray(guest).resize(photo.size))
    report = run()
    assert (report.carried_crops, report.new_crops) == (0, 1)
    with database.connection() as connection:
        session = catalog.find_session(connection, SessionKey(CLASS_NAME, FIRST))
        (crop,) = crops.session_crops(connection, session.id)
        ids = {name: catalog.student_named(connection, session.class_id, name) for name in ("Ada", "Carl")}
    assert crop.id not in spoken.values()
    (remark,) = remarks(database)
    assert "who was confirmed there (Ada, Carl) and what was said of 3 faces there" in remark
    decide.assign(crop.id, ids["Ada"])
    assert "who was confirmed there (Carl) does not count" in remarks(database)[0]
    decide.assign(crop.id, ids["Carl"])
    assert "(Ada) does not count" in remarks(database)[0]


def test_a_photo_that_was_away_before_it_came_back_saved_again_keeps_what_was_said(database, photos, run, spoken):
    said = words(database)
    saved_again(photos / PHOTO)
    content = (photos / PHOTO).read_bytes()
    (photos / PHOTO).unlink()
    run()
    (photos / PHOTO).write_bytes(content)
    assert run().carried_crops == 6
    assert words(database) == said


def test_a_portrait_saved_again_stays_with_its_student_and_what_was_said_of_it(database, photos, run, decide, demo):
    (photos / "enrol").mkdir()
    for name in ("Ada", "Bea"):
        shutil.copy(demo / "enrol" / f"{name}.jpg", photos / "enrol")
    run("enrol")
    with database.connection() as connection:
        portraits = {
            name: (crop_id, student_id)
            for name, crop_id, student_id in connection.execute(
                "SELECT st.name, c.crop_id, st.id FROM confirmed_crops c JOIN students st ON st.id = c.student_id"
            ).fetchall()
        }
    # They swap their names: a portrait says who its student is by its file's name only when it is new.
    for name, other in (("Ada", "x"), ("Bea", "Ada"), ("Ada", "Bea")):
        decide.rename(portraits[name][1], other)
    decide.unassign(portraits["Bea"][0])
    said = words(database)
    for name in ("Ada", "Bea"):
        saved_again(photos / "enrol" / f"{name}.jpg")
    for _ in range(2):
        run("enrol")
        assert words(database) == said
    assert remarks(database) == []


# The pictures alone


def kept(photo: Image.Image, detector: FaceDetector, *, preferred: bool = False) -> list[EarlierFace]:
    """The photo's faces as they would be kept."""
    pixels = np.asarray(photo)
    return [
        EarlierFace(cut_out(pixels, face), face.box[2:], photo.size, preferred)
        for face in sorted(detector.detect(pixels), key=lambda face: face.box)
    ]


def test_of_two_earlier_crops_of_one_face_the_one_that_was_spoken_of_goes_on(demo):
    detector = FaceDetector.from_settings(get_settings())
    with Image.open(demo / PHOTO) as photo:
        earlier = [*kept(photo, detector), *kept(photo, detector, preferred=True)]
        smaller = photo.resize((photo.width * 2 // 3, photo.height * 2 // 3))
    pixels = np.asarray(smaller)
    faces = sorted(detector.detect(pixels), key=lambda face: face.box)
    assert faces_found_again(earlier, pixels, faces) == [(i, 6 + i) for i in range(6)]
    assert faces_found_again([], pixels, faces) == []
    assert faces_found_again(earlier, pixels, []) == []


def test_photos_of_other_sessions_are_never_taken_for_one_that_was_saved_again(shared_faces):
    detector = FaceDetector.from_settings(get_settings())
    folders = sorted((shared_faces / "sessions" / "caltech_class").glob("session_*"))
    photos = [Image.open(path).convert("RGB") for folder in folders for path in sorted(folder.glob("*.jpg"))]
    earlier = [kept(photo, detector) for photo in photos]
    assert sum(map(len, earlier)) > 50
    for number, photo in enumerate(photos):
        again = io.BytesIO()
        photo.save(again, "JPEG", quality=35)
        pixels = np.asarray(Image.open(again))
        faces = sorted(detector.detect(pixels), key=lambda face: face.box)
        for other in range(len(photos)):
            pairs = faces_found_again(earlier[other], pixels, faces)
            assert pairs == ([(i, i) for i in range(len(faces))] if other == number else [])
