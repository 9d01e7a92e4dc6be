"""`attendansee up`: Dagster's webserver and daemon as children of one process, started and stopped together."""

import fcntl
import http.client
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pipelines.errors import AttendanseeError
from pipelines.settings import PROJECT_ROOT, Settings, get_settings

if TYPE_CHECKING:
    import dagster as dg

STARTING_SECONDS = 300
# How long the webserver, the daemon, their code servers and runs may take to end before they are killed.
STOPPING_SECONDS = 30
KILLING_SECONDS = 5
# A daemon gives a sign of life each 30 s, or after it has looked at the backfills if that takes longer.
LONGEST_SILENCE_SECONDS = 60


class UpError(AttendanseeError):
    """The UI cannot be started, or a part of it stopped by itself."""


@dataclass(frozen=True)
class _Child:
    name: str
    log: Path
    process: subprocess.Popen[bytes]


def run_up(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 3000,
    watch: str | None = None,
    workspace: Path = PROJECT_ROOT / "workspace.yaml",
) -> None:
    """Serve Dagster's UI at http://host:port and run its daemon until SIGINT, SIGTERM or SIGHUP arrives.

    watch: photo root (a folder or fsspec URL) that the sensor is switched on for. The address is printed once the UI
    answers. On return, as on an error, the children and their runs have ended. Raises UpError where the port is in use,
    another `up` runs on this instance, or a child stops by itself; other AttendanseeErrors where the database fails.
    """
    import dagster as dg

    from pipelines.database.server import check_server, database_url
    from pipelines.instance import fail_lost_runs, prepare_dagster_home

    if not workspace.is_file():
        raise UpError(f"The file {workspace} is missing: run `attendansee up` from a clone of the repository.")
    home = prepare_dagster_home(settings)
    environment = _environment(settings, watch)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    holder = f"`attendansee up` runs already: open {url} or stop process {os.getpid()} first."
    with _lock(home, holder), _stop_signals() as received:
        _check_port(host, port)
        if settings.database_url:
            check_server(database_url(settings))
        _check_broker(settings)
        # Opened first, for several processes at once made Dagster's tables in a fresh database and collided; kept open,
        # so that the embedded server ends after the children.
        with dg.DagsterInstance.get() as instance:
            fail_lost_runs(instance)
            children: list[_Child] = []
            guard = _start_guard(environment)
            try:
                for name, module in (
                    ("webserver", ["dagster_webserver", "-h", host, "-p", str(port), "-w", str(workspace)]),
                    ("daemon", _daemon_module(workspace)),
                ):
                    children.append(_start(name, module, environment, home))
                    _entrust(guard, children[-1])
                _wait_until_ready(host, port, children, received)
                if not received:
                    _announce(url, host, environment["ATTENDANSEE_PHOTOS"] if watch else None)
                while not received:
                    _check_alive(children)
                    time.sleep(0.2)
                print("Stopping.", flush=True)
            finally:
                _stop([child.process.pid for child in children])
                guard.kill()
                guard.wait()
            # Whoever looks for a daemon need not wait for a sign of life.
            instance.wipe_daemon_heartbeats()


@contextmanager
def daemon_at_work(
    settings: Settings, instance: "dg.DagsterInstance", workspace: Path = PROJECT_ROOT / "workspace.yaml"
) -> Iterator[Callable[[], bool]]:
    """Have Dagster's daemon at work: the one there is, wherever it runs, or else one of our own while the block lasts.

    Yields a function that says whether it is our own, and raises UpError once there is no daemon any more. Raises UpError
    where `attendansee up` is just starting, and what `run_up` raises.
    """
    from pipelines.instance import prepare_dagster_home

    home = prepare_dagster_home(settings)
    if _is_held(home) or _is_beating(instance):

        def others() -> bool:
            if not _is_held(home) and _silent_for(instance) > LONGEST_SILENCE_SECONDS:
                raise UpError("Dagster's daemon has stopped: start `attendansee up`, or run the same command again.")
            return False

        yield others
        return
    environment = _environment(settings, None)
    holder = f"A command is executing a backfill: wait until it has ended, or stop process {os.getpid()} first."
    with _lock(home, holder):
        _check_broker(settings)
        guard = _start_guard(environment)
        child = None
        try:
            child = _start("daemon", _daemon_module(workspace), environment, home)
            _entrust(guard, child)

            def ours() -> bool:
                _check_alive([child])
                return True

            yield ours
        finally:
            _stop([child.process.pid] if child else [])
            guard.kill()
            guard.wait()
            instance.wipe_daemon_heartbeats()


def _daemon_module(workspace: Path) -> list[str]:
    return ["pipelines.dagster_daemon", "run", "-w", str(workspace)]


def _is_held(home: Path) -> bool:
    """Whether somebody on this machine holds the instance's lock, and so has a daemon at work."""
    with (home / "up.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _is_beating(instance: "dg.DagsterInstance") -> bool:
    """Whether a daemon of another machine, or one that Dagster's own command has started, gives signs of life.

    One that was killed a moment ago left a fresh sign too: there it takes a while to see whether another follows.
    """
    silent_for = _silent_for(instance)
    if silent_for < LONGEST_SILENCE_SECONDS:
        print("There was a daemon at work a moment ago: waiting for a sign of life of it.", flush=True)
    while silent_for < LONGEST_SILENCE_SECONDS:
        time.sleep(1)
        now = _silent_for(instance)
        if now < silent_for:
            return True
        silent_for = now
    return False


def _silent_for(instance: "dg.DagsterInstance") -> float:
    """Seconds since the last heartbeat of a daemon that takes backfills; infinity where there was none."""
    heartbeat = instance.get_daemon_heartbeats().get("BACKFILL")
    return float("inf") if heartbeat is None else time.time() - heartbeat.timestamp


def stand_guard() -> None:
    """What the guard process does: wait until `up` is gone, then stop the process groups that it named on our stdin.

    `up` that is killed, for want of memory say, has no time to stop anything. Asking the kernel to send the children
    one SIGTERM did not do: a daemon loses it now and then, and nobody asks twice.
    """
    from pipelines.database.server import database_url

    database_url(get_settings())  # makes us a user of an embedded server, and as the last one to exit we stop it
    _stop([int(line) for line in sys.stdin])


def _environment(settings: Settings, watch: str | None) -> dict[str, str]:
    """The children's environment: this process's, with the settings that may come from elsewhere."""
    environment = {**os.environ, "ATTENDANSEE_HOME": str(settings.home.resolve())}
    if settings.database_url:
        environment["DATABASE_URL"] = settings.database_url
    if watch:
        if "://" not in watch:
            folder = Path(watch).resolve()
            if not folder.is_dir():
                raise UpError(f"The photo root {folder} is not a folder: name the one that holds a folder per class.")
            watch = str(folder)
        environment |= {"ATTENDANSEE_PHOTOS": watch, "ATTENDANSEE_WATCH": "1"}
    return environment


@contextmanager
def _lock(home: Path, holder: str) -> Iterator[None]:
    """Hold the instance's lock: two daemons on one instance start runs beyond the limits.

    holder: the sentence for whoever wants it meanwhile.
    """
    with (home / "up.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UpError(file.read() or "`attendansee up` runs already: it is starting.") from None
        file.truncate(0)
        file.write(holder)
        file.flush()
        yield


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect the signals that ask to stop. A list, for `threading.Event.set` in a handler can deadlock with `wait`."""
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        received.append(number)

    former = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _check_broker(settings: Settings) -> None:
    """Say so where the broker of the scale-out profile is set and cannot be reached."""
    if settings.broker_url:
        from pipelines.run_launcher import check_broker

        check_broker(settings)


def _check_port(host: str, port: int) -> None:
    """Say what keeps the webserver from listening, which the webserver itself says in a traceback in its log."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(address[0], address[1]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UpError(f"Port {port} of {host} cannot be used ({reason}): choose another with --port.") from error


def _start(name: str, module: list[str], environment: dict[str, str], home: Path) -> _Child:
    log = home / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A session of its own: Ctrl-C reaches this process alone, which stops the children in order.
            start_new_session=True,
        )
    return _Child(name, log, process)


def _start_guard(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "from pipelines.up import stand_guard; stand_guard()"],
        env=environment,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _entrust(guard: subprocess.Popen[bytes], child: _Child) -> None:
    """Name a child's group to the guard, who reads until our end of the pipe closes: at our death, however it comes."""
    assert guard.stdin is not None
    guard.stdin.write(b"%d\n" % child.process.pid)
    guard.stdin.flush()


def _wait_until_ready(host: str, port: int, children: list[_Child], received: list[int]) -> None:
    """Return once the UI answers or a signal asked to stop."""
    # Not urllib: it would ask a proxy that the environment names.
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    deadline = time.monotonic() + STARTING_SECONDS
    while not received:
        _check_alive(children)
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(local, port, timeout=5)
            connection.request("GET", "/server_info")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        if time.monotonic() > deadline:
            raise UpError(f"The UI does not answer after {STARTING_SECONDS} s: see the end of {children[0].log}.")
        time.sleep(0.2)


def _announce(url: str, host: str, watched: str | None) -> None:
    print(f"Dagster UI: {url} (Ctrl-C stops it)")
    if watched:
        print(f"Watching {watched} for new photos.")
    if not _is_loopback(host):
        print("Dagster has no log-in: let only a reverse proxy that asks for one reach this port (see deploy/).")
    sys.stdout.flush()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_alive(children: list[_Child]) -> None:
    for child in children:
        code = child.process.poll()
        if code is not None:
            raise UpError(
                f"Dagster's {child.name} stopped by itself (exit code {code}): the reason is at the end of {child.log}."
            )


def _stop(groups: list[int]) -> None:
    """Stop process groups: children, their code servers and runs in progress, which record that they were stopped."""
    left = groups
    for number, seconds in ((signal.SIGTERM, STOPPING_SECONDS), (signal.SIGKILL, KILLING_SECONDS)):
        for group in left:
            with suppress(ProcessLookupError):
                os.killpg(group, number)
        left = _wait_for_groups(left, seconds)


def _wait_for_groups(groups: list[int], seconds: float) -> list[int]:
    """Wait for process groups to be empty; returns those that are not after that time."""
    deadline = time.monotonic() + seconds
    while left := [group for group in groups if not _is_gone(group)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.1)
    return []


def _is_gone(group: int) -> bool:
    with suppress(ChildProcessError):  # the guard's charges are not its children
        os.waitpid(group, os.WNOHANG)  # a child that has not been waited for is still a member of its group
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):  # macOS says "not permitted" of a group of zombies
        return True
    return False
