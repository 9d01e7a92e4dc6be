"""The Dagster instance that all commands share: its home folder, and the runs that a killed process left behind."""

import json
import os
import socket
from pathlib import Path

import dagster as dg

from pipelines.errors import AttendanseeError
from pipelines.settings import Settings

DAGSTER_YAML = Path(__file__).with_name("dagster.yaml")

# Runs executed by a process of ours rather than by a code server carry its place, `<host>:<process id>`.
PROCESS_TAG = "attendansee/process"
# Dagster's own tag: where the code server that executes a run listens.
_CODE_SERVER_TAG = ".dagster/grpc_info"
_UNFINISHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def prepare_dagster_home(settings: Settings) -> Path:
    """Make the instance's home folder with an up-to-date dagster.yaml, and name it to Dagster; returns the folder.

    Sets DAGSTER_HOME for this process and its children. Raises AttendanseeError where the folder cannot be written.
    """
    home = settings.dagster_home.resolve()
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = home / "dagster.yaml"
        content = DAGSTER_YAML.read_bytes()
        if not config.is_file() or config.read_bytes() != content:
            # In one step, for another process may be reading it.
            part = config.with_name(f".dagster.yaml.{os.getpid()}")
            part.write_bytes(content)
            part.replace(config)
    except OSError as error:
        raise AttendanseeError(
            f"The folder {home} cannot be written ({error.strerror}): set ATTENDANSEE_HOME to a folder of your own."
        ) from error
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
    return home


def process_tag() -> dict[str, str]:
    """The tag by which `fail_lost_runs` knows that a run ends with this process."""
    return {PROCESS_TAG: f"{socket.gethostname()}:{os.getpid()}"}


def fail_lost_runs(instance: dg.DagsterInstance) -> int:
    """Mark the unfinished runs as failed whose process is gone from this machine; returns how many there were.

    Dagster notices a run worker that dies, but not one that dies together with its code server, by SIGKILL or a power
    cut: such runs stayed "started" for ever, and as many as may run at once (two) held up the queue for good.
    """
    lost = [run for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)) if _is_lost(run)]
    for run in lost:
        instance.report_run_failed(run, "The process that executed this run ended before the run did.")
    return len(lost)


def _is_lost(run: dg.DagsterRun) -> bool:
    if code_server := run.tags.get(_CODE_SERVER_TAG):
        return not _listens(json.loads(code_server))
    host, _, pid = run.tags.get(PROCESS_TAG, "").rpartition(":")
    return host == socket.gethostname() and not _lives(int(pid))


def _listens(address: dict[str, str]) -> bool:
    """True while a local code server takes connections; a server of another kind is taken to be alive."""
    path = address.get("socket")
    if path is None:
        return True
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(path)
        except OSError:
            return False
    return True


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
