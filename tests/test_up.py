"""`attendansee up` with a small code location of its own: starting, stopping, and parts that die."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from dagster._daemon.types import DaemonHeartbeat

from pipelines.database import embedded
from pipelines.settings import Settings
from pipelines.up import UpError, _is_beating, run_up

HOME = "a home"  # with a space

LOCATION = """
import os
import time
import dagster as dg

@dg.asset(description=os.environ.get("ATTENDANSEE_WATCH", "") + " " + os.environ.get("ATTENDANSEE_PHOTOS", ""))
def slow_asset():
    time.sleep(300)

defs = dg.Definitions(assets=[slow_asset])
"""
MAIN = """
import sys
from pathlib import Path
from pipelines.errors import AttendanseeError
from pipelines.settings import get_settings
from pipelines.up import run_up

try:
    run_up(get_settings(), port=int(sys.argv[1]), watch=sys.argv[2], workspace=Path(sys.argv[3]))
except AttendanseeError as error:
    sys.exit(str(error))
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Up:
    """`run_up` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.photos = folder / "photos"
        self.photos.mkdir(exist_ok=True)
        self.home = folder / HOME
        (folder / "tiny_location.py").write_text(LOCATION)
        workspace = folder / "workspace.yaml"
        workspace.write_text("load_from: [{python_file: {relative_path: tiny_location.py, location_name: tiny}}]\n")
        environment = {**os.environ, "ATTENDANSEE_HOME": str(self.home)}
        environment.pop("DATABASE_URL", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAIN, str(self.port), str(self.photos), str(workspace)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until_ready(self) -> str:
        """The first line said; ends after a while in any case, for `run_up` bounds its own start."""
        return self.process.stdout.readline()

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def daemon(self) -> psutil.Process:
        return next(
            child
            for child in psutil.Process(self.process.pid).children()
            if "pipelines.dagster_daemon" in child.cmdline()
        )

    def ask(self, query: str) -> dict:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": query}).encode(),
            {"content-type": "application/json"},
        )
        return json.load(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60))["data"]

    def end(self, timeout: float = 90) -> str:
        """What it said until it ended."""
        return self.process.communicate(timeout=timeout)[0]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """What run_up sets in this process is undone after each test."""
    for name in ("DAGSTER_HOME", "DAGSTER_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One database for all tests, for making one takes longer than starting it."""
    folder = tmp_path_factory.mktemp("up")
    yield folder
    embedded.remove(folder / HOME / "postgres")


@pytest.fixture
def up(folder):
    running = Up(folder)
    try:
        yield running
    finally:
        left = running.descendants() if running.process.poll() is None else []
        for process in [running.process, *left]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        running.process.communicate()


def still_there(processes, seconds=0.0):
    """Those that run after a while; one that has ended and waits for nobody to collect it counts as gone."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.3)
    return result


@pytest.mark.slow
def test_ctrl_c_stops_ui_daemon_runs_and_embedded_server(up):
    assert up.wait_until_ready() == f"Dagster UI: http://127.0.0.1:{up.port} (Ctrl-C stops it)\n"
    assert up.ask("{assetNodes {description}}") == {"assetNodes": [{"description": f"1 {up.photos}"}]}

    second = subprocess.run(
        [*up.process.args[:-3], str(free_port()), *up.process.args[-2:]],
        env={**os.environ, "ATTENDANSEE_HOME": str(up.home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert second.stderr == (
        f"`attendansee up` runs already: open http://127.0.0.1:{up.port} or stop process {up.process.pid} first.\n"
    )

    launched = up.ask(
        'mutation {launchRun(executionParams: {mode: "default", selector: {repositoryLocationName: "tiny", '
        'repositoryName: "__repository__", jobName: "__ASSET_JOB", assetSelection: [{path: ["slow_asset"]}]}}) '
        "{... on LaunchRunSuccess {run {runId}}}}"
    )
    run_id = launched["launchRun"]["run"]["runId"]
    status = f'{{runOrError(runId: "{run_id}") {{... on Run {{status}}}}}}'
    wait_for(lambda: up.ask(status)["runOrError"]["status"] == "STARTED")

    processes = up.descendants()
    assert any("postgres" in process.name() for process in processes)
    up.process.send_signal(signal.SIGINT)
    assert up.end().splitlines()[-1] == "Stopping."
    assert up.process.returncode == 0
    assert still_there(processes) == []


@pytest.mark.slow
def test_a_daemon_that_dies_ends_everything_and_names_its_log(up):
    up.wait_until_ready()
    processes = up.descendants()
    up.daemon().kill()
    log = up.home / "dagster" / "daemon.log"
    assert up.end().splitlines()[-1] == (
        f"Dagster's daemon stopped by itself (exit code -9): the reason is at the end of {log}."
    )
    assert up.process.returncode == 1
    assert still_there(processes) == []
    assert log.is_file()


@pytest.mark.slow
def test_children_do_not_outlive_a_killed_up(up):
    up.wait_until_ready()
    processes = up.descendants()
    # Deaf to the guard's request, as a daemon that loses a signal while it starts: it has to be killed.
    up.daemon().suspend()
    up.process.kill()
    assert still_there(processes, seconds=90) == []


def test_a_port_in_use_is_named_before_anything_is_started(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UpError, match=rf"Port {port} of 127\.0\.0\.1 cannot be used .*--port"):
            run_up(Settings(home=tmp_path), port=port)
    assert not (tmp_path / "postgres").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_only_one_up_holds_an_instance(tmp_path):
    (tmp_path / "dagster").mkdir()
    with (tmp_path / "dagster" / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UpError, match="runs already"):
            run_up(Settings(home=tmp_path), port=free_port())


@pytest.mark.parametrize(
    ("signs", "is_there"),
    [([], False), ([3600], False), ([10, 11, 12, 1], True), ([10, 30, 59, 60], False)],
    ids=["none", "an old one", "one that is renewed", "the last one of a killed daemon"],
)
def test_a_daemon_is_there_while_it_gives_signs_of_life(monkeypatch, signs, is_there):
    """signs: seconds since the last heartbeat, each time somebody looks."""
    left = iter(signs)

    class Instance:
        def get_daemon_heartbeats(self):
            if not signs:
                return {}
            return {"BACKFILL": DaemonHeartbeat(time.time() - next(left), "BACKFILL", None, [])}

    monkeypatch.setattr("pipelines.up.time.sleep", lambda _: None)
    assert _is_beating(Instance()) is is_there


def test_a_watched_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UpError, match="nowhere is not a folder"):
        run_up(Settings(home=tmp_path), port=free_port(), watch=str(tmp_path / "nowhere"))
