"""A real PostgreSQL with pgvector for the whole test run, and an empty, migrated database for each test that asks."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import absl.logging
import dagster as dg
import numpy as np
import psycopg
import pytest
from playwright.sync_api import Browser, sync_playwright

from pipelines.database import catalog, crops, decisions, embedded
from pipelines.database.migrate import migrate
from pipelines.database.server import database_url
from pipelines.demo_photos import CLASS_NAME, make_demo_photos
from pipelines.faces.face import DetectedFace
from pipelines.partitions import SessionKey, parse_session_key, sessions
from pipelines.resources import build_resources
from pipelines.resources import database as database_resource
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import get_spec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.services.attendance import AttendanceService
from pipelines.services.session_assignment import AssignmentConfig, SessionAssignmentService
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService
from pipelines.settings import PROJECT_ROOT, Settings, get_settings

SHARED_FACES = PROJECT_ROOT.parent / "shared" / "data" / "faces"


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """ATTENDANSEE_HOME of the test run; nothing of the developer's own settings is seen."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ATTENDANSEE_")]:
            patch.delenv(name)
        patch.delenv("DATABASE_URL", raising=False)
        patch.setenv("ATTENDANSEE_HOME", str(folder))
        patch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
        get_settings.cache_clear()
        yield folder
    get_settings.cache_clear()
    # As root the data lies outside pytest's folder and would outlive it.
    embedded.remove(folder / "postgres")


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """Have the commands under test hear SIGINT, which whoever runs the tests in the background has them inherit ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def absl_closes_no_stream() -> None:
    """Have absl, which TensorFlow brings, log to the process's own stderr.

    It takes whatever sys.stderr is when it is imported, pytest's capture of a test that is long over, and closes it when
    logging is configured anew while sys.stderr is another one, such as that of a command under test: no test after it could
    write any more.
    """
    absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def template(home: Path) -> str:
    """URL of a migrated database that tests copy; it lies in the embedded server."""
    url = database_url(Settings(), dbname="template_attendansee")
    migrate(url)
    return url


@pytest.fixture
def database(template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """An empty database of its own, which `Database()` and every service use during the test."""
    name = f"test_{uuid4().hex[:12]}"
    maintenance = template.replace("template_attendansee", "postgres")
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template_attendansee")
    monkeypatch.setenv("DATABASE_URL", template.replace("template_attendansee", name))
    get_settings.cache_clear()
    database_resource._ready_url.cache_clear()
    yield Database()
    database_resource._ready_url.cache_clear()
    monkeypatch.undo()
    get_settings.cache_clear()
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def open_browser() -> Callable[[], AbstractContextManager[Browser]]:
    """Opens a headless Chromium, to be closed before Dagster runs anything: it wants no event loop of Playwright's."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed to look at pages with")

    @contextmanager
    def opened() -> Iterator[Browser]:
        # Everything that would reach for the internet or a GPU is off; Chromium's sandbox refuses to run as root.
        off = ["gpu", "quic", "background-networking", "component-update", "sync"]
        options = ["--no-sandbox", "--no-first-run", *(f"--disable-{feature}" for feature in off)]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=options)
            yield browser
            browser.close()

    return opened


@pytest.fixture
def shared_faces() -> Path:
    """The folder of real photos with ground truth, which a clone alone does not have."""
    if not SHARED_FACES.is_dir():
        pytest.skip("the labelled photos in ../shared/data/faces are not here")
    return SHARED_FACES


@dataclass
class MadeClass:
    """Puts sessions of made vectors into the database, as detection and embedding would leave them."""

    database: Database
    model: str = "dlib"
    version: str = "v"
    people: dict[str, np.ndarray] = field(default_factory=dict)
    everyone: dict[tuple[int, str], int] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def vector(self, person: str, distance: float = 0.015) -> np.ndarray:
        """A unit vector about `distance` (cosine) away from the person's own; people are nearly orthogonal."""
        dimension = get_spec(self.model).dimension
        # One direction per name, whatever else was drawn before.
        own = np.random.default_rng(sum(ord(c) * 31**i for i, c in enumerate(person)) % 2**32).normal(size=dimension)
        own /= np.linalg.norm(own)
        noise = self.rng.normal(size=dimension)
        noise -= noise @ own * own
        noise /= np.linalg.norm(noise)
        cosine = 1 - distance
        return (cosine * own + np.sqrt(1 - cosine**2) * noise).astype(np.float32)

    def session(
        self, key: str, photos: list[list[str]], *, distance: float = 0.015, unusable: frozenset[str] = frozenset()
    ) -> dict[tuple[int, str], int]:
        """Add a session whose photos show these people; returns the crop id of each (photo number, person)."""
        made: dict[tuple[int, str], int] = {}
        session_key = parse_session_key(key)
        with self.database.connection() as connection:
            session = catalog.ensure_session(connection, session_key)
            for number, people in enumerate(photos):
                image_id = self._photo(connection, session_key, session.id, f"{number}.jpg")
                for place, person in enumerate(people):
                    crop_id = self._crop(connection, image_id, place)
                    if person in unusable:
                        crops.set_unusable_reasons(connection, crop_id, ["blurred"])
                    made[number, person] = crop_id
            self._embed(connection, made, distance)
        self._remember(made)
        return made

    def enrol(self, class_name: str, *names: str) -> dict[str, int]:
        """Add a confirmed portrait for each name; returns the students' ids."""
        key = SessionKey(class_name, "enrol")
        students: dict[str, int] = {}
        made: dict[tuple[int, str], int] = {}
        with self.database.connection() as connection:
            session = catalog.ensure_session(connection, key)
            for name in names:
                students[name] = catalog.ensure_named_student(connection, session.class_id, name)
                image_id = self._photo(connection, key, session.id, f"{name}.jpg")
                connection.execute("UPDATE images SET student_id = %s WHERE id = %s", [students[name], image_id])
                made[0, name] = self._crop(connection, image_id, 0)
            crops.confirm_portraits(connection, session.id, session.class_id)
            self._embed(connection, made, 0.015)
        self._remember(made)
        return students

    def _remember(self, made: dict[tuple[int, str], int]) -> None:
        self.everyone |= {(crop_id, person): crop_id for (_, person), crop_id in made.items()}

    def confirm(self, class_name: str, made: dict[tuple[int, str], int]) -> None:
        """Say of each crop whom it shows, without what a service does besides."""
        with self.database.connection() as connection:
            class_id = catalog.find_class(connection, class_name)
            for (_, person), crop_id in made.items():
                student_id = catalog.ensure_named_student(connection, class_id, person)
                about = {"class_id": class_id, "crop_id": crop_id, "student_id": student_id}
                decisions.append_decision(connection, "confirm", decided_by="a teacher", run_id=None, **about)

    def embed_again(self, model: str, made: dict[tuple[int, str], int], distance: float = 0.015) -> None:
        """Give the crops vectors of another model too."""
        before, self.model = self.model, model
        with self.database.connection() as connection:
            self._embed(connection, made, distance)
        self.model = before

    def _photo(self, connection: psycopg.Connection, key: SessionKey, session_id: int, name: str) -> int:
        path = f"{key.class_name}/{key.session_name}/{name}"
        catalog.register_image(
            connection,
            session_id,
            sha256=path,
            path=path,
            size_bytes=1,
            width=1000,
            height=1000,
            taken_at=None,
            refused_reason=None,
        )
        (image,) = [i for i in catalog.session_images(connection, session_id) if i.path == path]
        return image.id

    def _crop(self, connection: psycopg.Connection, image_id: int, place: int) -> int:
        face = DetectedFace((place * 100.0, 0.0, 80.0, 80.0), np.zeros((5, 2), np.float32), 0.99)
        return crops.insert_crop(connection, image_id, face, None, sharpness=1.0, yaw=0.0)

    def _embed(self, connection: psycopg.Connection, made: dict[tuple[int, str], int], distance: float) -> None:
        vectors = np.stack([self.vector(person, distance) for _, person in made])
        crops.write_embeddings(connection, self.model, self.version, list(made.values()), vectors)


@pytest.fixture
def made_class(database: Database) -> MadeClass:
    """A maker of sessions with made vectors in the test's database."""
    return MadeClass(database)


@pytest.fixture
def embedded_class(database: Database) -> MadeClass:
    """A maker of sessions whose vectors have the version that the real model's have, so that operations find them."""
    return MadeClass(database, version=EmbeddingModels.from_settings(get_settings()).version("dlib"))


@pytest.fixture
def confirmed_class(embedded_class: MadeClass) -> MadeClass:
    """The class "m": ten people with a portrait each, and 29 photos in which everybody is confirmed; 300 crops."""
    people = ["ann", "bob", "cem", "dan", "eve", "fay", "gus", "hal", "ivy", "jan"]
    embedded_class.enrol("m", *people)
    embedded_class.confirm("m", embedded_class.session("m__confirmed", [people] * 29))
    return embedded_class


@pytest.fixture
def facenet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, embedded_class: MadeClass) -> Callable[..., None]:
    """Lets facenet be used beside dlib, and gives crops made vectors of it.

    Its network never runs: the weights file only makes its vectors' version.
    """
    monkeypatch.setenv("ATTENDANSEE_ALLOW_UNVERIFIED_WEIGHTS", "1")
    # Not ATTENDANSEE_HOME: loading DeepFace in an earlier test has set this one, which comes first.
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    get_settings.cache_clear()
    weights = get_settings().weights_folder / get_spec("facenet").weights_file
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"made: no network is run here")

    def embed(made: dict[tuple[int, str], int], distance: float = 0.015) -> None:
        before = embedded_class.version
        embedded_class.version = EmbeddingModels.from_settings(get_settings()).version("facenet")
        embedded_class.embed_again("facenet", made, distance)
        embedded_class.version = before

    return embed  # `database` undoes the variables


@pytest.fixture
def process_class(database: Database) -> Callable[..., None]:
    """Lets a model's lineage go from vectors to attendance for all sessions of a class, as the assets do."""

    def run(model: str, class_name: str = "m") -> None:
        version = EmbeddingModels.from_settings(get_settings()).version(model)
        with database.connection() as connection:
            keys = [key for key in catalog.session_keys(connection) if key.class_name == class_name]
        for key in sorted(keys, key=lambda key: (not key.is_enrolment, key)):
            SessionClusteringService(database, model, version).cluster_session(key, ClusteringConfig())
            SessionAssignmentService(database, model, version).assign_session(key, AssignmentConfig())
            AttendanceService(database, model).register_session(key)

    return run


@pytest.fixture
def identities_of(database: Database) -> Callable[..., dict[int, str | None]]:
    """Reads the name of the student that each crop is assigned to."""

    def read(made: dict[tuple[int, str], int], model: str = "dlib") -> dict[tuple[int, str], str | None]:
        with database.connection() as connection:
            rows = connection.execute(
                """SELECT a.crop_id, st.name FROM assignments a JOIN students st ON st.id = a.student_id
                WHERE a.model = %s AND a.state = 'assigned'""",
                [model],
            ).fetchall()
        names = dict(rows)
        return {place: names.get(crop_id) for place, crop_id in made.items()}

    return read


@pytest.fixture(scope="session")
def unnamed_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's three sessions without the portraits: nobody's name is known."""
    folder = tmp_path_factory.mktemp("unnamed") / "photos"
    make_demo_photos(folder)
    for portrait in (folder / CLASS_NAME / "enrol").iterdir():
        portrait.unlink()
    return folder


@pytest.fixture
def detect(database: Database, unnamed_photos: Path, tmp_path: Path) -> Callable[[str], int]:
    """Finds the faces of one of the demo's sessions, as the photo assets do; returns the session's id."""
    from pipelines.assets import PHOTO_ASSETS

    settings = get_settings().model_copy(update={"photos": str(unnamed_photos), "home": tmp_path})
    instance = dg.DagsterInstance.ephemeral()

    def run(name: str) -> int:
        key = SessionKey(CLASS_NAME, name)
        instance.add_dynamic_partitions(sessions.name or "", [str(key)])
        resources = build_resources(settings)
        assert dg.materialize(PHOTO_ASSETS, instance=instance, partition_key=str(key), resources=resources).success
        with database.connection() as connection:
            return catalog.find_session(connection, key).id

    return run
