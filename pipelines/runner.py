"""Process a photo root through Dagster's instance, in this process: what the sensor does, while somebody waits."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from pipelines.database import catalog, lineages
from pipelines.errors import AttendanseeError
from pipelines.instance import has_processed, latest_runs, process_tag
from pipelines.partitions import CLASS_TAG, FINGERPRINT_TAG, SessionKey, classes, sessions
from pipelines.resources.database import Database
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.resources.photo_store import Listing, PhotoStore, fingerprint
from pipelines.sensors.scan import by_session, content_fingerprints
from pipelines.services.coverage import read_coverage


@dataclass(frozen=True)
class Outcome:
    """How one session's (or class's) run ended; `reason` is empty where it succeeded."""

    name: str
    skipped: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Work:
    """One session to process; fingerprint: see `content_fingerprints`."""

    key: SessionKey
    model: str
    fingerprint: str


def plan(
    listing: Listing,
    registered: Collection[SessionKey],
    model_of: Callable[[str], str],
    configuration: str,
    class_name: str | None,
    session_name: str | None,
) -> list[Work]:
    """The sessions of the listing in the order to process them: a class's portraits first, then its sessions by name.

    registered: sessions that were processed before. model_of names the embedding model of a class.
    configuration: see `content_fingerprints`. Raises AttendanseeError where the given class or session is not there.
    """
    files_of = by_session(listing)
    # The last photo of a session was removed: its faces must not count any longer. A folder that is gone altogether
    # (unmounted, moved) says nothing.
    files_of |= {key: [] for key in listing.sessions if key not in files_of and key in registered}
    fingerprints = content_fingerprints({key: fingerprint(files) for key, files in files_of.items()}, configuration)
    wanted = [
        key
        for key in sorted(fingerprints, key=lambda key: (key.class_name, not key.is_enrolment, key.session_name))
        if class_name in (None, key.class_name) and (session_name in (None, key.session_name) or key.is_enrolment)
    ]
    if not fingerprints:
        found = "No photos that can be used were found" if listing.bad_folders else "No photos were found"
        raise AttendanseeError(f"{found}: put them in folders <class>/<session>/ below the photo root.")
    if not any(session_name in (None, key.session_name) for key in wanted):
        there = ", ".join(sorted(str(key) for key in fingerprints))
        raise AttendanseeError(f"No photos match the class and session given: choose among these sessions ({there}).")
    return [Work(key, model_of(key.class_name), fingerprints[key]) for key in wanted]


def process(
    work: list[Work],
    *,
    instance: dg.DagsterInstance,
    database: Database,
    store: PhotoStore,
    models: EmbeddingModels,
    force: bool = False,
    on_start: Callable[[str], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Run every session whose photos no successful run has seen as they are now, then the register of each class.

    Where several sessions of a class are new, all but the last are assigned once more, for they were decided before the
    later ones were known: 3 to 4 percent more of the students are found so (benchmarks/README.md, "Identity"). A session
    that fails is reported and the others go on.
    """
    from pipelines.definitions import defs

    keys = [str(item.key) for item in work]
    instance.add_dynamic_partitions(sessions.name or "", keys)
    instance.add_dynamic_partitions(classes.name or "", list({item.key.class_name for item in work}))
    changed: dict[str, str] = {}
    processed: dict[str, list[Work]] = defaultdict(list)
    # The sessions that lineages cover, by class, until one is processed: its portraits may make all others lack.
    covered: dict[str, Collection[SessionKey]] = {}

    def covers(item: Work) -> bool:
        class_name = item.key.class_name
        if class_name not in covered:
            covered[class_name] = _covered_sessions(database, class_name, item.model, models.version(item.model))
        return item.key in covered[class_name]

    resources = {"photo_store": {"config": {"photos": store.photos, "crops": store.crops}}}
    for item in work:
        name, job = str(item.key), defs.resolve_job_def(f"process_session_{item.model}")
        on_start(name)
        if not force and _is_done(instance, database, item, covers):
            yield Outcome(name, skipped=True)
            continue
        changed[item.key.class_name] = item.model
        covered.pop(item.key.class_name, None)
        outcome = _execute(job, name, instance, tags=_tags(item), resources=resources)
        if not outcome.reason and not item.key.is_enrolment:
            processed[item.key.class_name].append(item)
        yield outcome
    for item in (item for of_class in processed.values() for item in of_class[:-1]):
        on_start(f"{item.key}, second look")
        again = [dg.AssetKey([item.model, name]) for name in ("student_assignments", "session_attendance")]
        job = defs.resolve_job_def(f"process_session_{item.model}")
        outcome = _execute(job, str(item.key), instance, tags=_tags(item), resources=resources, assets=again)
        if outcome.reason:
            yield outcome
    with database.connection() as connection:
        registered = set(catalog.class_names(connection))
    for class_name, model in changed.items():
        if class_name in registered:
            on_start(class_name)
            register = defs.resolve_job_def(f"class_attendance_{model}")
            yield _execute(register, class_name, instance, tags={CLASS_TAG: class_name}, resources={})


def _tags(item: Work) -> dict[str, str]:
    return {FINGERPRINT_TAG: item.fingerprint, CLASS_TAG: item.key.class_name}


def _is_done(instance: dg.DagsterInstance, database: Database, item: Work, covers: Callable[[Work], bool]) -> bool:
    """Whether the session's latest run succeeded on the photos as they are now, and the model has processed them.

    Where that run was another model's, before the class switched, or the model's lineage has been deleted since, what the
    lineage `covers` tells.
    """
    with database.connection() as connection:
        processed_by = lineages.models_of_class(connection, item.key.class_name)
    names = {f"process_session_{name}" for name in (item.model, *processed_by)}
    latest = latest_runs(instance, {item.key: names}).get(item.key)
    if latest is None or not has_processed(latest, item.fingerprint):
        return False
    is_own = item.model in processed_by and latest.job_name == f"process_session_{item.model}"
    return is_own or covers(item)


def _covered_sessions(database: Database, class_name: str, model: str, version: str) -> set[SessionKey]:
    with database.connection() as connection:
        keys = {key for key in catalog.session_keys(connection) if key.class_name == class_name}
        if not keys:
            return set()
        lacking = read_coverage(connection, catalog.find_class(connection, class_name), model, version).lacking
    return {key for key in keys if key.session_name not in lacking}


def _execute(
    job: dg.JobDefinition,
    partition_key: str,
    instance: dg.DagsterInstance,
    tags: dict[str, str],
    resources: dict[str, Any],
    assets: Sequence[dg.AssetKey] | None = None,
) -> Outcome:
    """Run a job for a partition; only these of its assets and their checks, unless None."""
    result = job.execute_in_process(
        instance=instance,
        partition_key=partition_key,
        asset_selection=assets,
        tags={**tags, **process_tag()},
        run_config={"resources": resources, "loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )
    if any(_was_interrupted(event) for event in result.all_events):
        # Dagster takes Ctrl-C for the failure of one step, and the next session would start.
        raise KeyboardInterrupt
    return Outcome(partition_key, reason="" if result.success else why_it_failed(result.run_id, result.all_events))


def _was_interrupted(event: dg.DagsterEvent) -> bool:
    """Whether Ctrl-C hit this step, which then failed or, by its retry policy, was started again."""
    if event.is_step_failure:
        error = event.step_failure_data.error
    elif event.is_step_up_for_retry:
        error = event.step_retry_data.error
    else:
        return False
    while error is not None and error.cls_name != "DagsterExecutionInterruptedError":
        error = error.cause
    return error is not None


def why_it_failed(run_id: str, events: Sequence[dg.DagsterEvent]) -> str:
    """The sentence that the first failed step ended with, else its innermost error, else the failed check's findings.

    events: of the run, at least its step failures and check evaluations.
    """
    for event in events:
        if event.is_step_failure:
            failure = event.step_failure_data
            if failure.user_failure_data is not None and failure.user_failure_data.description:
                return failure.user_failure_data.description
            error = failure.error
            while error is not None and error.cause is not None:
                error = error.cause
            if error is not None and error.cls_name != "DagsterAssetCheckFailedError":
                return f"{event.step_key}: {error.message.strip().splitlines()[0]}"
    for event in events:
        if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            if not evaluation.passed and evaluation.severity is dg.AssetCheckSeverity.ERROR:
                return f"{evaluation.check_name}: {evaluation.description}"
    return f"run {run_id} failed: open it in the Dagster UI"
