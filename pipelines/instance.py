"""The Dagster instance that all commands share: its home folder, and the runs that a killed process left behind."""

import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import dagster as dg
import yaml

from pipelines.errors import AttendanseeError
from pipelines.partitions import CLASS_TAG, FINGERPRINT_TAG, SessionKey, class_of, sessions
from pipelines.settings import PROJECT_ROOT, Settings

DAGSTER_YAML = Path(__file__).with_name("dagster.yaml")
# Laid over the other one, block by block, where a broker is set.
SCALE_OUT_YAML = PROJECT_ROOT / "deploy" / "scale_out" / "dagster.yaml"

# Runs executed by a process of ours rather than by a code server carry its place, `<host>:<process id>`.
PROCESS_TAG = "attendansee/process"
# Dagster's own tag: where the code server that executes a run listens.
_CODE_SERVER_TAG = ".dagster/grpc_info"
# dagster-celery's, of the runs that it hands to a worker; stated here, for the package is optional.
_CELERY_TAG = "dagster-celery/task_id"
_STARTED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
# Runs that process something or will. NOT_STARTED is left out: the daemon queues what a sensor requested before its next
# tick, so such a run was abandoned.
UNFINISHED = [dg.DagsterRunStatus.QUEUED, *_STARTED]
_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def latest_runs(
    instance: dg.DagsterInstance, jobs_of: Mapping[SessionKey, Collection[str]]
) -> dict[SessionKey, dg.DagsterRun]:
    """Each session's latest run that has ended, where there is one; jobs_of: names of the jobs that count for it."""
    keys = {str(key): key for key in jobs_of}
    runs = instance.get_runs(dg.RunsFilter(statuses=_FINISHED, tags={"dagster/partition": list(keys)}))
    latest: dict[SessionKey, dg.DagsterRun] = {}
    for run in runs:  # The latest first.
        key = keys[run.tags["dagster/partition"]]
        if run.job_name in jobs_of[key]:
            latest.setdefault(key, run)
    return latest


def has_processed(latest: dg.DagsterRun, content: str) -> bool:
    """Whether a session's latest run has done all of this content (see FINGERPRINT_TAG).

    One that failed, such as a second look that was cut off, leaves it undone, whatever those before it did.
    """
    return latest.is_success and latest.tags.get(FINGERPRINT_TAG) == content


def prepare_dagster_home(settings: Settings) -> Path:
    """Make the instance's home folder with an up-to-date dagster.yaml, and name it to Dagster; returns the folder.

    Sets DAGSTER_HOME for this process and its children. Raises AttendanseeError where the folder cannot be written, or a
    broker is set and the packages of the scale-out profile are missing.
    """
    home = settings.dagster_home.resolve()
    content = _configuration(settings)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = home / "dagster.yaml"
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
    # The records of a range of partitions go to the event log together; one by one they took a third of a run's time.
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "100")
    return home


def _configuration(settings: Settings) -> bytes:
    """The content of dagster.yaml: for one machine as it is, for the scale-out profile with its blocks in place."""
    content = DAGSTER_YAML.read_bytes()
    if settings.broker_url is None:
        return content
    if find_spec("dagster_celery") is None or find_spec("redis") is None:
        raise AttendanseeError(
            "ATTENDANSEE_BROKER_URL is set, and the packages of the scale-out profile are missing: "
            "run `make setup` (or install attendansee-pipelines[scale-out]), or unset it."
        )
    if not SCALE_OUT_YAML.is_file():
        raise AttendanseeError(f"The file {SCALE_OUT_YAML} is missing: run from a clone of the repository.")
    return yaml.safe_dump(yaml.safe_load(content) | yaml.safe_load(SCALE_OUT_YAML.read_bytes())).encode()


def process_tag() -> dict[str, str]:
    """The tag by which `fail_lost_runs` knows that a run ends with this process."""
    return {PROCESS_TAG: f"{socket.gethostname()}:{os.getpid()}"}


def fail_lost_runs(instance: dg.DagsterInstance) -> int:
    """Mark the unfinished runs as failed whose process is gone from this machine; returns how many there were.

    Dagster notices a run worker that dies, but not one that dies together with its code server, by SIGKILL or a power
    cut: such runs stayed "started" for ever, and as many as may run at once (two) held up the queue for good.
    """
    lost = [run for run in instance.get_runs(dg.RunsFilter(statuses=_STARTED)) if _is_lost(run)]
    for run in lost:
        instance.report_run_failed(run, "The process that executed this run ended before the run did.")
    return len(lost)


def classes_of_run(instance: dg.DagsterInstance, tags: Mapping[str, str]) -> set[str]:
    """Names of the classes that a run works on, by its tags."""
    return {tags.get(CLASS_TAG, "")} | {class_of(key) for key in _partition_keys(instance, tags)}


def _partition_keys(instance: dg.DagsterInstance, tags: Mapping[str, str]) -> Iterator[str]:
    if key := tags.get("dagster/partition"):
        yield key
    start, end = tags.get("dagster/asset_partition_range_start"), tags.get("dagster/asset_partition_range_end")
    if start and end:
        known = sessions.get_partition_keys(dynamic_partitions_store=instance)
        if start in known and end in known:
            yield from known[known.index(start) : known.index(end) + 1]
        else:
            yield from (start, end)  # of classes


def _is_lost(run: dg.DagsterRun) -> bool:
    if _CELERY_TAG in run.tags:
        # A worker's: run monitoring looks after it. The other tags came along from a run that this one retries.
        return False
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
