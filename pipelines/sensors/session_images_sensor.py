"""Watches the photo root: new photos become partitions and runs of `process_session_<the class's active model>`."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, TypeAlias

import dagster as dg

from pipelines.errors import ModelError, PhotoStoreError
from pipelines.instance import UNFINISHED, has_processed, latest_runs
from pipelines.partitions import CLASS_TAG, ENROL, FINGERPRINT_TAG, MODEL_TAG, SessionKey, classes, sessions
from pipelines.resources.embedding.registry import BROKEN
from pipelines.resources.photo_store import Listing, PhotoStore
from pipelines.sensors import scan
from pipelines.settings import get_settings

if TYPE_CHECKING:
    # What dg.define_asset_job returns; Dagster does not export it.
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

Job: TypeAlias = "dg.JobDefinition | UnresolvedAssetJobDefinition"

MINIMUM_INTERVAL_SECONDS = 30
_NAMES_SHOWN = 5
_LOOKED_UP_AT_ONCE = 1000


def default_status() -> dg.DefaultSensorStatus:
    """Sensors are off until somebody switches them on, unless the deployment is set to watch."""
    return dg.DefaultSensorStatus.RUNNING if get_settings().watch else dg.DefaultSensorStatus.STOPPED


def build_session_images_sensor(
    jobs: Mapping[str, Job],
    active_models: Callable[[], Mapping[str, str]] = dict,
    first_models: Callable[[], Mapping[str, str]] = dict,
) -> dg.SensorDefinition:
    """The sensor; jobs: what processes one session, by embedding model.

    active_models: the active model of each class that has one; the others are processed with ATTENDANSEE_MODEL.
    first_models: the one that each class began with where it is another. It names the run keys for good: a class that
    switches has been processed by its new model already, and a lost cursor must not have all of that done again.
    """

    @dg.sensor(
        name="session_images_sensor",
        jobs=list(jobs.values()),
        minimum_interval_seconds=MINIMUM_INTERVAL_SECONDS,
        default_status=default_status(),
        description="Processes sessions with new photos. Photos still being written are left until they settle.",
    )
    def session_images_sensor(
        context: dg.SensorEvaluationContext, photo_store: PhotoStore
    ) -> dg.SensorResult | dg.SkipReason:
        settings = get_settings()
        if settings.model not in jobs:
            raise ModelError(
                f"There is no model {settings.model!r}: set ATTENDANSEE_MODEL to one of {', '.join(jobs)}."
            )
        try:
            listing = photo_store.scan()
        except PhotoStoreError as error:
            # Not an empty folder: the cursor stays as it is.
            return dg.SkipReason(str(error))
        active = active_models()
        # A model that a person added, and whose file or definition is broken now.
        blocked = {name: model for name, model in active.items() if model not in jobs}
        for name, model in blocked.items():
            reason = BROKEN.get(model, f"There is no model {model!r}.")
            context.log.warning(f"The class {name} is not processed: its active model cannot be used. {reason}")
        state, now = _state(context), time.time()
        running = _running_enrolments(context.instance, listing)

        def look(processed: Collection[SessionKey] = ()) -> scan.ScanResult:
            return scan.diff(listing, state, now, settings.settle_seconds, running, blocked, processed)

        result = look()
        # Most ticks find nothing, and need to know no more.
        first = first_models() if result.requests else {}
        seen = {key: known.seen for key in listing.sessions if (known := result.state.sessions.get(str(key)))}
        contents = scan.content_fingerprints(seen, settings.detection_configuration) if result.requests else {}

        def models_of(key: SessionKey) -> tuple[str, str]:
            """The class's active model, and the one that it began with."""
            model = active.get(key.class_name, settings.model)
            return model, first.get(key.class_name, model)

        checked: set[SessionKey] = set()
        processed: set[SessionKey] = set()
        while not checked.issuperset(request.key for request in result.requests):
            # What `attendansee run` has done since, or before the sensor was switched on, is not done again.
            due = [*(request.key for request in result.requests), *result.waiting]
            asked = [key for key in due if key not in checked][:_LOOKED_UP_AT_ONCE]
            checked.update(asked)
            # A class that switched has been processed by its new model, whatever its first one's runs say.
            jobs_of = {key: {jobs[model].name for model in models_of(key) if model in jobs} for key in asked}
            latest = latest_runs(context.instance, jobs_of)
            processed.update(key for key, run in latest.items() if has_processed(run, contents[key]))
            result = look(processed)
        for folder in result.bad_folders:
            context.log.warning(folder.reason)
        cursor = scan.encode(result.state)
        if not result.requests:
            return dg.SensorResult(skip_reason=_skip_reason(result), cursor=cursor)

        def run_request(request: scan.SessionRequest) -> dg.RunRequest:
            return _run_request(request, *models_of(request.key), jobs, contents[request.key])

        return dg.SensorResult(
            run_requests=[run_request(request) for request in result.requests],
            dynamic_partitions_requests=_new_partitions(context.instance, [request.key for request in result.requests]),
            cursor=cursor,
        )

    return session_images_sensor


def _state(context: dg.SensorEvaluationContext) -> scan.State:
    if not context.cursor:
        return scan.State()
    try:
        return scan.decode(context.cursor)
    except ValueError as error:
        context.log.warning(f"The cursor cannot be used ({error}): looking at everything anew; run keys avoid repeats.")
        return scan.State()


def _running_enrolments(instance: dg.DagsterInstance, listing: Listing) -> Collection[str]:
    keys = {str(SessionKey(photo.class_name, ENROL)) for photo in listing.photos if photo.session_name == ENROL}
    if not keys:
        return ()
    unfinished = dg.RunsFilter(statuses=UNFINISHED, tags={"dagster/partition": sorted(keys)})
    return {run.tags["dagster/partition"] for run in instance.get_runs(unfinished)}


def _run_request(
    request: scan.SessionRequest, model: str, first_model: str, jobs: Mapping[str, Job], content: str
) -> dg.RunRequest:
    key = request.key
    return dg.RunRequest(
        run_key=":".join(part for part in (str(key), request.version, request.enrolment, first_model) if part),
        job_name=jobs[model].name,
        partition_key=str(key),
        tags={
            CLASS_TAG: key.class_name,
            "attendansee/session": key.session_name,
            MODEL_TAG: model,
            # What `attendansee run` compares, so that it leaves out what is done.
            FINGERPRINT_TAG: content,
        },
    )


def _new_partitions(instance: dg.DagsterInstance, keys: Collection[SessionKey]) -> list[dg.AddDynamicPartitionsRequest]:
    wanted = [(sessions, {str(key) for key in keys}), (classes, {key.class_name for key in keys})]
    new = [
        (part, sorted(names - set(part.get_partition_keys(dynamic_partitions_store=instance))))
        for part, names in wanted
    ]
    return [part.build_add_request(names) for part, names in new if names]


def _skip_reason(result: scan.ScanResult) -> str:
    reasons = [folder.reason for folder in result.bad_folders[:_NAMES_SHOWN]]
    if result.waiting:
        names = ", ".join(str(key) for key in result.waiting[:_NAMES_SHOWN])
        more = "" if len(result.waiting) <= _NAMES_SHOWN else f" and {len(result.waiting) - _NAMES_SHOWN} more"
        reasons.append(f"Waiting for photos to settle, for the class's enrolment or for its model: {names}{more}.")
    else:
        reasons.append(f"No new photos; {len(result.state.sessions)} sessions known.")
    return " ".join(reasons)
