"""Runs handed to workers over Redis: a backfill survives a worker that is killed, and does nothing twice."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import dagster as dg
import numpy as np
import psutil
import psycopg
import pytest
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import WorkerStatus
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import pack_value

from pipelines.assets.common import model_asset
from pipelines.database import catalog, crops, embedded, run_locks
from pipelines.database.server import database_url
from pipelines.definitions import defs
from pipelines.demo_photos import FACES, _packaged_photo
from pipelines.errors import AttendanseeError
from pipelines.instance import SCALE_OUT_YAML, fail_lost_runs, prepare_dagster_home
from pipelines.jobs import SESSION_STAGES
from pipelines.partitions import MODEL_TAG, SessionKey, sessions
from pipelines.resources import build_resources
from pipelines.resources import database as database_resource
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import REGISTRY, get_spec
from pipelines.resources.face_detector import FaceDetector
from pipelines.run_launcher import WORKER_TAG, BrokerError, WorkerRunLauncher, check_broker
from pipelines.services.attendance import AttendanceService
from pipelines.settings import PROJECT_ROOT, Settings, get_settings

CLASSES = ("Art1", "Bio2", "Chem3", "Drama4")
DAYS = tuple(f"2026-09-{day:02}" for day in range(1, 5))
KEYS = [str(SessionKey(name, session)) for name in CLASSES for session in ("enrol", *DAYS)]
NAMED = ("Ada", "Bea", "Carl", "Dan")  # Emil and Fay have no portraits: each is one provisional student of a class
RANGE_TAG = "dagster/asset_partition_range"
PHOTOS_PER_SESSION = 3
FACES_PER_PHOTO = 5
SESSIONS_PER_RUN = 3  # fewer than a class has, so that several runs write the identities of one class


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> object:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return result


def family(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed at the end, with all its children."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=PROJECT_ROOT)
    try:
        yield process
    finally:
        left = family(psutil.Process(process.pid)) if process.poll() is None else []
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with running(command, tmp_path / "redis.log"):

        def answers() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        wait_for(answers, 10, "Redis")
        yield f"redis://127.0.0.1:{port}/0"


def url_options() -> str:
    """What follows the question mark of DATABASE_URL in the profile's environment file."""
    (line,) = [line for line in (SCALE_OUT_YAML.parent / "attendansee.env").read_text().splitlines() if "?" in line]
    return line.partition("?")[2].rstrip("'")


def forget_settings() -> None:
    get_settings.cache_clear()
    database_resource._ready_url.cache_clear()


@pytest.fixture
def school(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[embedded.EmbeddedServer]:
    """The environment of a deployment, all of whose processes use one server by DATABASE_URL."""
    home = tmp_path / "home"
    url = database_url(Settings(home=home))
    for name, value in {
        "ATTENDANSEE_HOME": str(home),
        # With options as in the recipe.
        "DATABASE_URL": f"{url}&{url_options()}",
        "ATTENDANSEE_BROKER_URL": redis_url,
        "ATTENDANSEE_SESSIONS_PER_RUN": str(SESSIONS_PER_RUN),
        "ATTENDANSEE_MODEL": "dlib",
        "DAGSTER_HOME": "",
    }.items():
        monkeypatch.setenv(name, value)
    forget_settings()
    yield embedded.ensure(home / "postgres")
    monkeypatch.undo()
    forget_settings()
    embedded.remove(home / "postgres")


def make_sessions(folder: Path) -> int:
    """Photos and crops of CLASSES as detection leaves them; returns how many crops there are, portraits included.

    One of the six people is absent from each session.
    """
    from PIL import ImageEnhance

    photo = _packaged_photo("insightface", "data/images/t1.jpg")
    faces = FaceDetector.from_settings(get_settings()).detect(np.asarray(photo))
    people = dict(zip(FACES, sorted(faces, key=lambda face: face.box[0]), strict=True))
    made = 0

    def add(connection: psycopg.Connection, key: SessionKey, name: str, names: list[str]) -> list[int]:
        nonlocal made
        made += len(names)
        buffer = BytesIO()
        ImageEnhance.Brightness(photo).enhance(0.8 + made / 1000).save(buffer, "JPEG", quality=88)
        path = f"{key.class_name}/{key.session_name}/{name}.jpg"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(buffer.getvalue())
        session = catalog.ensure_session(connection, key)
        catalog.register_image(
            connection,
            session.id,
            sha256=sha256(buffer.getvalue()).hexdigest(),
            path=path,
            size_bytes=len(buffer.getvalue()),
            width=photo.width,
            height=photo.height,
            taken_at=None,
            refused_reason=None,
        )
        (image_id,) = [image.id for image in catalog.session_images(connection, session.id) if image.path == path]
        for person in names:
            crops.insert_crop(connection, image_id, people[person], None, sharpness=1.0, yaw=0.0)
        crops.mark_searched(connection, image_id, "made")
        return [session.id, session.class_id, image_id]

    with Database().connection() as connection:
        for class_number, class_name in enumerate(CLASSES):
            for student in NAMED:
                session_id, class_id, image_id = add(connection, SessionKey(class_name, "enrol"), student, [student])
                student_id = catalog.ensure_named_student(connection, class_id, student)
                connection.execute("UPDATE images SET student_id = %s WHERE id = %s", [student_id, image_id])
                crops.confirm_portraits(connection, session_id, class_id)
            for day_number, day in enumerate(DAYS):
                absent = (class_number + day_number) % len(people)
                there = [name for number, name in enumerate(people) if number != absent]
                for number in range(PHOTOS_PER_SESSION):
                    add(connection, SessionKey(class_name, day), str(number), there)
            catalog.record_photo_root(connection, class_name, str(folder))
    return made


def process_here() -> None:
    """What the backfill does, in one run in this process."""
    stages = [model_asset(get_spec("dlib"), stage) for stage in SESSION_STAGES]
    assets = [asset for asset in defs.assets or [] if isinstance(asset, dg.AssetsDefinition) and asset.key in stages]
    range_tags = {f"{RANGE_TAG}_start": KEYS[0], f"{RANGE_TAG}_end": KEYS[-1]}
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(sessions.name or "", KEYS)
        resources = build_resources(get_settings())
        assert dg.materialize(assets, instance=instance, tags=range_tags, resources=resources).success


def registers() -> dict[str, list[str]]:
    """Each class's attendance; provisional students are named by the session in which they were seen first."""
    return {
        name: sorted(
            re.sub(r"Class_\w+_Session_[\d-]+_Cluster_\d+", "somebody", row)
            for row in AttendanceService(Database(), "dlib").register(name).to_csv().splitlines()
        )
        for name in CLASSES
    }


def counted(query: str, *parameters: object) -> int:
    with Database().connection() as connection:
        return connection.execute(query, parameters).fetchone()[0]


def worker_pid(run: dg.DagsterRun) -> int:
    return int(run.tags[WORKER_TAG].partition("@")[0].rpartition("-")[2])


def lost_in_the_middle(instance: dg.DagsterInstance) -> dg.DagsterRun | None:
    """A run some of whose sessions have vectors and some have none, whose worker was stopped there and then killed.

    None before two others have succeeded.
    """
    if instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS])) < 2:
        return None
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        if WORKER_TAG not in run.tags:
            continue
        worker = family(psutil.Process(worker_pid(run)))
        for process in worker:
            process.suspend()
        first, last = (KEYS.index(run.tags[f"{RANGE_TAG}_{end}"]) for end in ("start", "end"))
        embedded_sessions = counted(
            """SELECT count(DISTINCT s.id) FROM embeddings_dlib JOIN face_crops f ON f.id = crop_id
            JOIN images i ON i.id = image_id JOIN sessions s ON s.id = i.session_id
            JOIN classes c ON c.id = s.class_id WHERE c.name || '__' || s.name = ANY(%s)""",
            KEYS[first : last + 1],
        )
        middle = 0 < embedded_sessions <= last - first
        for process in worker:
            process.kill() if middle else process.resume()
        if middle:
            return run
    return None


@pytest.mark.slow
def test_a_backfill_survives_a_killed_worker_and_does_nothing_twice(school, tmp_path):
    crops_made = make_sessions(tmp_path / "photos")
    with psycopg.connect(school.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE one_process TEMPLATE attendansee")
    prepare_dagster_home(get_settings())
    command = [sys.executable, "-c", "from pipelines.cli import main; main()"]
    with (
        dg.DagsterInstance.get() as instance,
        running([*command, "worker"], tmp_path / "one.log") as one,
        running([*command, "worker"], tmp_path / "two.log") as two,
        running([*command, "backfill", "--model", "dlib"], tmp_path / "backfill.log") as backfill,
    ):
        lost = wait_for(lambda: lost_in_the_middle(instance), 240, "a run in the middle of its sessions")
        at_the_kill = counted("SELECT count(*) FROM embeddings_dlib")
        assert 0 < at_the_kill < crops_made
        assert backfill.wait(300) == 0, (tmp_path / "backfill.log").read_text()
        left, log = (one, "one.log") if worker_pid(lost) == two.pid else (two, "two.log")

        # A message that the broker sends twice is dropped, for the run is known to have ended.
        args = ExecuteRunArgs(lost.job_code_origin, lost.run_id, instance.get_ref(), set_exit_code_on_failure=False)
        instance.run_launcher.celery.send_task("execute_job", kwargs={"execute_job_args_packed": pack_value(args)})
        dropped = f"Run {lost.run_id} is not waiting for a worker any more."
        wait_for(lambda: dropped in (tmp_path / log).read_text(), 60, "the second message")
        left.terminate()
        assert left.wait(60) == 0

        records = instance.get_run_records(dg.RunsFilter(job_name=lost.job_name, tags={MODEL_TAG: "dlib"}))
        runs = [record.dagster_run for record in records if f"{RANGE_TAG}_start" in record.dagster_run.tags]
        made = {
            stage: Counter(
                event.partition_key
                for event in instance.fetch_materializations(dg.AssetKey(["dlib", stage]), limit=1000).records
            )
            for stage in SESSION_STAGES
        }

    # Everything is complete: the lost run failed, and the other worker did what it had left.
    assert made == dict.fromkeys(SESSION_STAGES, dict.fromkeys(KEYS, 1))
    assert [run.run_id for run in runs if run.status != dg.DagsterRunStatus.SUCCESS] == [lost.run_id]
    (again,) = [run for run in runs if run.parent_run_id == lost.run_id]
    assert worker_pid(again) == left.pid
    assert {worker_pid(run) for run in runs} == {one.pid, two.pid}
    # A worker embeds for one run at a time.
    for pid in (one.pid, two.pid):
        of_worker = [record for record in records if worker_pid(record.dagster_run) == pid]
        times = sorted((record.start_time, record.end_time) for record in of_worker)
        assert all(end <= start for (_, end), (start, _) in pairwise(times))

    # Nothing is there twice, and all is as one process makes it.
    with Database().connection() as connection:
        vectors, people, assigned = (
            connection.execute(query).fetchone()
            for query in (
                "SELECT count(*), count(DISTINCT crop_id) FROM embeddings_dlib",
                "SELECT count(*) FILTER (WHERE NOT provisional), count(*) FILTER (WHERE provisional) FROM students",
                "SELECT count(*), count(DISTINCT crop_id) FROM assignments WHERE model = 'dlib'",
            )
        )
    assert vectors == (crops_made, crops_made)
    assert people == (len(CLASSES) * len(NAMED), len(CLASSES) * (len(FACES) - len(NAMED)))
    assert assigned == (crops_made, crops_made)
    attendance = registers()
    os.environ["DATABASE_URL"] = school.url("one_process")
    forget_settings()
    assert counted("SELECT count(*) FROM embeddings_dlib") == 0
    process_here()
    assert registers() == attendance


@pytest.mark.slow
def test_a_message_that_is_taken_while_postgresql_is_down_waits_for_it(school, tmp_path):
    with Database().connection() as connection:
        session = catalog.ensure_session(connection, SessionKey("Art1", DAYS[0]))
        student_id = catalog.ensure_named_student(connection, session.class_id, "Ada")
    home = get_settings().home
    prepare_dagster_home(get_settings())
    job = defs.resolve_job_def("rename_student")
    code = RepositoryPythonOrigin(sys.executable, ModuleCodePointer("pipelines.definitions", "defs"))
    log = tmp_path / "worker.log"
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "worker"]
    with dg.DagsterInstance.get() as instance, running(command, log) as worker:
        run = instance.create_run_for_job(
            job,
            run_config={"ops": {job.name: {"config": {"student_id": student_id, "name": "Ada King"}}}},
            status=dg.DagsterRunStatus.STARTING,
            job_code_origin=JobPythonOrigin(job.name, code),
        )
        args = ExecuteRunArgs(run.job_code_origin, run.run_id, instance.get_ref(), set_exit_code_on_failure=False)
        wait_for(lambda: f"{os.uname().nodename} ready." in log.read_text(), 120, "the worker")
        assert embedded.stop(home / "postgres")
        instance.run_launcher.celery.send_task("execute_job", kwargs={"execute_job_args_packed": pack_value(args)})
        try:
            # Twice: what is tried again may fail again.
            wait_for(lambda: log.read_text().count("retry: Retry in") >= 2, 60, "the worker to try again")
        finally:
            embedded.ensure(home / "postgres")
        wait_for(lambda: instance.get_run_by_id(run.run_id).is_finished, 120, "the run")
        worker.terminate()
        assert worker.wait(60) == 0
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.SUCCESS
        starts = instance.all_logs(run.run_id, {dg.DagsterEventType.STEP_START})
    assert len(starts) == 1
    assert counted("SELECT count(*) FROM decisions WHERE run_id = %s", run.run_id) == 1


def test_a_run_is_held_until_its_connection_ends(database):
    run_id, other = str(uuid4()), str(uuid4())
    with database.connection() as asking:
        with database.connection() as worker:
            assert run_locks.hold_run(worker, run_id)
            assert run_locks.is_held(asking, run_id)
            assert not run_locks.is_held(asking, other)
            assert not run_locks.hold_run(asking, run_id)
            assert worker.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        wait_for(lambda: not run_locks.is_held(asking, run_id), 10, "PostgreSQL to see that the worker has gone")


@dg.job
def nothing():
    pass


def test_a_run_is_lost_when_it_is_started_and_not_held(database):
    launcher = WorkerRunLauncher(default_queue="dagster", broker="redis://127.0.0.1:1/0")
    assert not launcher.supports_resume_run
    with dg.DagsterInstance.ephemeral() as instance:
        tags = {"dagster-celery/task_id": "1", WORKER_TAG: "attendansee-7@there"}
        run = instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags=tags)
        with database.connection() as worker:
            run_locks.hold_run(worker, run.run_id)
            assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
        with database.connection() as asking:
            wait_for(
                lambda: not run_locks.is_held(asking, run.run_id), 10, "PostgreSQL to see that the worker has gone"
            )
        lost = launcher.check_run_worker_health(run)
        assert (lost.status, lost.msg) == (WorkerStatus.FAILED, "The worker attendansee-7@there is gone.")
        # A command's own run, which no worker ever has.
        run = instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED)
        assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING


def test_a_run_that_a_person_stops_does_not_count_as_lost(redis_url):
    launcher = WorkerRunLauncher(default_queue="dagster", broker=redis_url)
    tags = {"dagster-celery/task_id": "1"}
    with dg.DagsterInstance.ephemeral() as instance:
        launcher.register_instance(instance)

        def stopped(status: dg.DagsterRunStatus, tags: dict[str, str]) -> tuple[bool, dg.DagsterRunStatus]:
            run_id = instance.create_run_for_job(nothing, status=status, tags=tags).run_id
            return launcher.terminate(run_id), instance.get_run_by_id(run_id).status

        started, ended = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS
        assert stopped(started, tags) == (True, dg.DagsterRunStatus.CANCELING)
        assert stopped(ended, tags) == (False, ended)
        assert stopped(started, {}) == (False, started)  # a command's own


def test_a_worker_s_run_is_left_to_run_monitoring():
    gone = {"attendansee/process": f"{socket.gethostname()}:{2**22 + 1}"}
    with dg.DagsterInstance.ephemeral() as instance:
        for tags in (gone, {**gone, "dagster-celery/task_id": "1"}):
            instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTING, tags=tags)
        assert fail_lost_runs(instance) == 1


def test_a_broker_makes_the_home_that_of_the_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "")
    url = "redis://:secret@redis.example.org:6379/0"
    written = (prepare_dagster_home(Settings(home=tmp_path, broker_url=url)) / "dagster.yaml").read_text()
    assert "secret" not in written
    assert "example.org" not in written
    profile = yaml.safe_load(SCALE_OUT_YAML.read_text())
    for block, content in yaml.safe_load(written).items():
        assert content == profile.get(block, content)
    assert {"storage", "retention", *profile} <= yaml.safe_load(written).keys()
    assert "run_launcher" not in yaml.safe_load(
        (prepare_dagster_home(Settings(home=tmp_path)) / "dagster.yaml").read_text()
    )


def test_a_broker_without_the_packages_for_it_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.instance.find_spec", lambda name: None)
    with pytest.raises(AttendanseeError, match=r"packages of the scale-out profile are missing: run `make setup`"):
        prepare_dagster_home(Settings(home=tmp_path, broker_url="redis://127.0.0.1:6379/0"))
    assert not (tmp_path / "dagster").exists()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("amqp://guest:secret@127.0.0.1//", r"^ATTENDANSEE_BROKER_URL is no Redis URL: write redis://"),
        (
            "redis://:secret@127.0.0.1:{port}/0",
            r"^The broker redis://:\*\*@127.0.0.1:\d+/0 cannot be used \(.*\): .*refused",
        ),
        ("redis://:secret/more@127.0.0.1:6379/0", r"^ATTENDANSEE_BROKER_URL cannot be read: write redis://"),
        ("redis://:secret#more@127.0.0.1:6379/0", r"^ATTENDANSEE_BROKER_URL cannot be read: write redis://"),
    ],
)
def test_a_broker_that_cannot_be_used_is_named_without_its_password(url, sentence):
    with pytest.raises(BrokerError, match=sentence) as raised:
        check_broker(Settings(broker_url=url.format(port=free_port())))
    assert "secret" not in str(raised.value)


def test_a_worker_without_a_broker_or_a_database_says_so(tmp_path, monkeypatch, redis_url):
    def said(**environment: str) -> str:
        command = [sys.executable, "-c", "from pipelines.cli import main; main()", "worker"]
        environment = {**os.environ, "ATTENDANSEE_HOME": str(tmp_path), **environment}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 1
        (line,) = ended.stderr.splitlines()
        return line

    assert said().startswith("Error: ATTENDANSEE_BROKER_URL is not set")
    nowhere = "postgresql://somebody:secret@127.0.0.1:1/attendansee"
    line = said(ATTENDANSEE_BROKER_URL=redis_url, DATABASE_URL=nowhere)
    assert line.startswith("Error: The PostgreSQL server 127.0.0.1/attendansee cannot be used")
    assert "secret" not in line


def test_every_embedding_step_is_in_the_pool_that_limits_them():
    pools = {
        asset.key: asset.op.pool
        for asset in defs.assets or []
        if isinstance(asset, dg.AssetsDefinition) and asset.key.path[-1] == "face_embeddings"
    }
    assert pools == {dg.AssetKey([name, "face_embeddings"]): "embedding" for name in REGISTRY}
