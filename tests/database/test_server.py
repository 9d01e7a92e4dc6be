"""The URLs derived from the settings, and Dagster's storage behind them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import sqlalchemy

from pipelines.database import embedded
from pipelines.database.migrate import current_revision, migrate
from pipelines.database.server import check_server, dagster_url, database_url
from pipelines.errors import DatabaseError
from pipelines.settings import PROJECT_ROOT, Settings, get_settings

DAGSTER_YAML = """
telemetry: {enabled: false}
storage:
  custom:
    module: pipelines.database.dagster_storage
    class: AttendanseeDagsterStorage
    config: {}
"""


@pytest.fixture(scope="module")
def server_home() -> Iterator[Path]:
    """ATTENDANSEE_HOME with an embedded server for this file; its path needs percent-encoding."""
    base = Path(tempfile.mkdtemp(prefix="server-", dir="/tmp"))
    base.chmod(0o711)
    yield base / "a home, 100% é"
    embedded.remove(base / "a home, 100% é" / "postgres")
    shutil.rmtree(base)


@pytest.fixture
def settings(server_home: Path) -> Settings:
    return Settings(home=server_home, database_url=None)


@pytest.fixture
def instance_environment(server_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """DAGSTER_HOME with our storage; DAGSTER_HOME and ATTENDANSEE_HOME are set."""
    (tmp_path / "dagster.yaml").write_text(DAGSTER_YAML)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("ATTENDANSEE_HOME", str(server_home))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def test_without_database_url_the_embedded_server_has_our_database(settings: Settings) -> None:
    for _ in range(2):  # created, then found
        url = database_url(settings)
        check_server(url)
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT current_database(), '[1]'::text").fetchone() == ("attendansee", "[1]")
    with psycopg.connect(database_url(settings, dbname='odd "name" %')) as connection:
        assert connection.info.dbname == 'odd "name" %'


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("postgresql://u:p%40ss@db.example:6432/school?sslmode=require",) * 2,
        ("postgres://u@h/d", "postgresql://u@h/d"),
        ("postgresql+psycopg2://u@h/d", "postgresql://u@h/d"),
        ("postgresql+psycopg://u@h1:1,h2:2/d", "postgresql://u@h1:1,h2:2/d"),
        (" postgresql://u@%2Fvar%2Frun%2Fpostgresql/d\n", "postgresql://u@%2Fvar%2Frun%2Fpostgresql/d"),
    ],
)
def test_database_url_is_used_as_it_is(given: str, url: str) -> None:
    assert database_url(Settings(database_url=given)) == url


@pytest.mark.parametrize(
    "wrong", ["mysql://u:secret@h/d", "host=h password=secret", "postgresql://u:secret%@h/d", "sqlite:///x"]
)
def test_a_wrong_database_url_is_named_but_not_shown(wrong: str) -> None:
    with pytest.raises(DatabaseError, match="DATABASE_URL is not a PostgreSQL URL") as caught:
        database_url(Settings(database_url=wrong))
    assert "secret" not in str(caught.value)


def test_an_unreachable_server_is_one_sentence_without_the_password() -> None:
    url = "postgresql://u:secret@127.0.0.1:1/school"
    for use in (check_server, lambda url: dagster_url(Settings(database_url=url))):
        with pytest.raises(DatabaseError, match=r"server 127.0.0.1/school cannot be used .*: .*refused") as caught:
            use(url)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_dagster_gets_a_database_of_its_own_and_a_driver_that_can_notify(settings: Settings) -> None:
    for chosen in (settings, Settings(database_url=database_url(settings))):
        url = dagster_url(chosen)
        assert url.startswith("postgresql+psycopg2://")
        with sqlalchemy.create_engine(url).begin() as connection:
            assert connection.scalar(sqlalchemy.text("SELECT current_database()")) == "dagster"
            connection.execute(sqlalchemy.text("NOTIFY run_events, :id"), {"id": "1"})


def test_password_hosts_and_options_reach_dagster(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.database.server._create_database", lambda url, dbname: None)
    given = "postgres://u%2Fx:p%40ss:1@h1:1,h2:2/d?sslmode=require&application_name=a%20b"
    url = sqlalchemy.make_url(dagster_url(Settings(database_url=given)))
    _, options = url.get_dialect()().create_connect_args(url)
    assert options == {
        "user": "u/x",
        "password": "p@ss:1",
        "host": "h1,h2",
        "port": "1,2",
        "dbname": "dagster",
        "sslmode": "require",
        "application_name": "a b",
    }


def test_a_role_that_may_not_create_databases_is_told_what_to_do(settings: Settings) -> None:
    admin = database_url(settings)
    execute(admin, "DROP DATABASE IF EXISTS dagster WITH (FORCE)", "CREATE ROLE teacher LOGIN")
    limited = Settings(database_url=admin.replace("postgres@", "teacher@", 1))
    with pytest.raises(DatabaseError, match="role teacher may not create the database dagster") as caught:
        dagster_url(limited)
    execute(admin, str(caught.value).split("run ")[1].rstrip("."))  # the remedy as it is written
    assert "teacher@/dagster" in dagster_url(limited)
    execute(admin, "DROP DATABASE dagster", "DROP ROLE teacher")


def test_a_role_that_may_not_make_the_extension_is_told_what_to_do(settings: Settings) -> None:
    admin = database_url(settings)
    execute(admin, "CREATE ROLE teacher LOGIN", "CREATE DATABASE school OWNER teacher")
    theirs = admin.replace("postgres@", "teacher@", 1).replace("/attendansee?", "/school?")
    with pytest.raises(DatabaseError, match="permission denied to create extension") as caught:
        migrate(theirs)
    remedy = re.search("CREATE EXTENSION vector", str(caught.value))
    assert remedy is not None
    execute(theirs.replace("teacher@", "postgres@"), remedy[0])
    assert migrate(theirs) == current_revision(theirs)
    execute(admin, "DROP DATABASE school", "DROP ROLE teacher")


@pytest.mark.parametrize(
    ("installed", "available", "problem"),
    [
        (None, "0.8.0", None),
        ("0.8.5", "0.8.5", None),
        ("0.10.0", "0.10.0", None),
        ("1.0", None, None),
        (None, None, r"has no pgvector: install version 0\.8 or later"),
        (None, "0.7.4", r"has pgvector 0\.7\.4, and 0\.8 is needed: update it"),
        ("0.7.4", "0.7.4", r"has pgvector 0\.7\.4, and 0\.8 is needed: update it"),
        ("0.6.2", "0.8.5", r"uses pgvector 0\.6\.2, and 0\.8 is needed: run ALTER EXTENSION vector UPDATE there\."),
    ],
)
def test_pgvector_versions(
    settings: Settings, installed: str | None, available: str | None, problem: str | None
) -> None:
    url = database_url(settings, dbname="versions")
    execute(
        url,
        "DROP SCHEMA IF EXISTS other CASCADE",
        "CREATE SCHEMA other",
        "CREATE TABLE other.pg_extension (extname text, extversion text)",
        "CREATE TABLE other.pg_available_extensions (name text, default_version text)",
        *([f"INSERT INTO other.pg_extension VALUES ('vector', '{installed}')"] if installed else []),
        *([f"INSERT INTO other.pg_available_extensions VALUES ('vector', '{available}')"] if available else []),
        # Looked up before PostgreSQL's own catalog, these make it another server's.
        "ALTER DATABASE versions SET search_path = other, pg_catalog",
    )
    if problem is None:
        check_server(url)
    else:
        with pytest.raises(DatabaseError, match=problem):
            check_server(url)


@pytest.mark.slow
def test_two_processes_make_dagsters_tables_at_once(settings: Settings, instance_environment: None) -> None:
    execute(database_url(settings), "DROP DATABASE IF EXISTS dagster WITH (FORCE)")
    script = """
        import sys
        import dagster as dg
        import pipelines.database.dagster_storage
        print("ready", flush=True)
        sys.stdin.readline()
        with dg.DagsterInstance.get() as instance:
            instance.add_dynamic_partitions("sessions", [sys.argv[1]])
            again = dg.DagsterInstance.from_ref(instance.get_ref())  # as run workers get it
            print(again.has_dynamic_partition("sessions", sys.argv[1]))
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), key],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT_ROOT,
        )
        for key in ("a__1", "a__2")
    ]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert output == "True\n", errors
        assert "Retrying failed database creation" not in errors
    with dg.DagsterInstance.get() as instance:
        assert set(instance.get_dynamic_partitions("sessions")) == {"a__1", "a__2"}


@pytest.mark.parametrize("webserver", [False, True], ids=["daemon", "webserver"])
def test_a_long_lived_instance_outlives_a_killed_server(
    settings: Settings, instance_environment: None, webserver: bool
) -> None:
    with dg.DagsterInstance.get() as instance:
        if webserver:
            instance.optimize_for_webserver(statement_timeout=5000, pool_recycle=3600, max_overflow=5)
        instance.add_dynamic_partitions("classes", ["Math101"])
        server = embedded.ensure(settings.home / "postgres")
        os.kill(int((server.data_dir / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        time.sleep(0.5)  # until pooled connections are dead, which PostgreSQL's processes take a moment to be
        assert instance.get_dynamic_partitions("classes") == ["Math101"]
        assert instance.get_runs_count() == 0


def test_an_instance_that_is_closed_leaves_no_connection(settings: Settings, instance_environment: None) -> None:
    url = database_url(settings, dbname="postgres")

    def connections() -> set[int]:
        with psycopg.connect(url) as connection:
            return {pid for (pid,) in connection.execute("SELECT pid FROM pg_stat_activity WHERE datname = 'dagster'")}

    before = connections()
    with dg.DagsterInstance.get() as instance:
        instance.get_runs_count()
        instance.has_dynamic_partition("sessions", "a__1")
        instance.all_instigator_state()
        assert connections() - before
    deadline = time.monotonic() + 10
    while connections() - before and time.monotonic() < deadline:
        time.sleep(0.05)  # PostgreSQL's processes take a moment to end
    assert not connections() - before
