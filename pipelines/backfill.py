"""Let one model process the sessions that its lineage lacks: a Dagster asset backfill, planned, launched and followed.

Dagster's daemon executes it, as it does one that is launched in the UI or over GraphQL.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.execution.asset_backfill import AssetBackfillStatus, PartitionedAssetBackfillStatus
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionsFilter,
    BulkActionStatus,
    PartitionBackfill,
)
from dagster._core.utils import make_new_backfill_id

from pipelines.database import catalog
from pipelines.database.embedding_tables import ensure_embedding_table
from pipelines.errors import AttendanseeError
from pipelines.jobs import SESSION_STAGES
from pipelines.partitions import MODEL_TAG, SessionKey, class_of, classes, sessions
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import get_spec
from pipelines.runner import why_it_failed
from pipelines.services.coverage import read_coverage

REGISTER = "class_attendance"
# Dagster's own tag, on every run of a backfill.
BACKFILL_TAG = "dagster/backfill"
_REASONS = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.ASSET_CHECK_EVALUATION}
_UNFINISHED = [status for status in BulkActionStatus if status not in BULK_ACTION_TERMINAL_STATUSES]


@dataclass(frozen=True)
class Plan:
    """What a backfill is to make: keys of session and class partitions.

    up_to_date: number of sessions that lack nothing. left_out: sessions that cannot be processed yet, with the reason.
    """

    sessions: list[str]
    classes: list[str]
    up_to_date: int
    left_out: dict[str, str]

    def without_missing_sessions(self) -> "Plan":
        """Only the registers of classes that lack no session."""
        lacking = {class_of(key) for key in self.sessions}
        return replace(self, sessions=[], classes=[name for name in self.classes if name not in lacking])


@dataclass(frozen=True)
class Stage:
    """How many partitions of one asset are made, have failed (at it or at a stage before it), and are wanted."""

    made: int
    failed: int
    wanted: int


@dataclass(frozen=True)
class Progress:
    """How far a backfill has got, by the names of its assets; `status` is Dagster's word."""

    status: str
    stages: dict[str, Stage]

    @property
    def succeeded(self) -> bool:
        """True once everything is made."""
        return self.status == BulkActionStatus.COMPLETED_SUCCESS.value


def plan_backfill(
    instance: dg.DagsterInstance,
    database: Database,
    model: str,
    version: str,
    class_name: str | None = None,
    *,
    everything: bool = False,
) -> Plan:
    """The sessions that the model's lineage lacks or that have changed since, and the registers that follow from them.

    version: of the vectors that count. everything: take the sessions too that lack nothing. Raises AttendanseeError for a
    class that is not there.
    """
    with database.connection() as connection:
        names = [class_name] if class_name is not None else catalog.class_names(connection)
        class_ids = {name: catalog.find_class(connection, name) for name in names}
        # Refuses a definition whose dimension somebody has changed, before 25 sessions fail for it.
        ensure_embedding_table(connection, model, get_spec(model).dimension)
        registered = {key for key in catalog.session_keys(connection) if key.class_name in class_ids}
        unsearched = registered & catalog.unsearched_sessions(connection)
        lacking = {
            str(SessionKey(name, session))
            for name, class_id in class_ids.items()
            for session in read_coverage(connection, class_id, model, version).lacking
        }
    left_out = {str(key): "nobody has looked for faces in its photos yet" for key in sorted(unsearched)}
    known = set(map(str, registered))
    for key in sessions.get_partition_keys(dynamic_partitions_store=instance):
        if class_of(key) in class_ids and key not in known:
            left_out[key] = "its photos are not registered yet"
    # Portraits first: runs take sessions in the order in which Dagster came to know them.
    order = sorted(registered - unsearched, key=lambda key: (key.class_name, not key.is_enrolment, key.session_name))
    ready = [str(key) for key in order]
    stages = [_made_at(instance, ["face_crops"]), *(_made_at(instance, [model, stage]) for stage in SESSION_STAGES)]
    wanted = [key for key in ready if everything or key in lacking or not _made_in_order(key, stages)]
    registers = _made_at(instance, [model, REGISTER])
    changed = {class_of(key) for key in wanted}
    for key, made_at in stages[-1].items():
        name = class_of(key)
        if name in class_ids and registers.get(name, 0) < made_at:
            changed.add(name)
    return Plan(wanted, sorted(changed), len(ready) - len(wanted), left_out)


def _made_at(instance: dg.DagsterInstance, asset: list[str]) -> Mapping[str, int]:
    """The place in Dagster's event log where each partition of an asset was last made."""
    return instance.get_latest_storage_id_by_partition(dg.AssetKey(asset), dg.DagsterEventType.ASSET_MATERIALIZATION)


def _made_in_order(key: str, stages: list[Mapping[str, int]]) -> bool:
    """Whether every stage of the lineage was made after the one before it; `stages` begin with the face crops."""
    crops, *lineage = [made_at.get(key, 0) for made_at in stages]
    return 0 not in lineage and sorted([crops, *lineage]) == [crops, *lineage]


def launch_backfill(instance: dg.DagsterInstance, plan: Plan, model: str) -> str:
    """Ask Dagster's daemon for a backfill of the plan's partitions; returns its id."""
    instance.add_dynamic_partitions(sessions.name or "", plan.sessions)
    instance.add_dynamic_partitions(classes.name or "", plan.classes)
    wanted = {
        dg.AssetKey([model, stage]): sessions.subset_with_partition_keys(plan.sessions) for stage in SESSION_STAGES
    }
    wanted[dg.AssetKey([model, REGISTER])] = classes.subset_with_partition_keys(plan.classes)
    backfill = PartitionBackfill.from_asset_graph_subset(
        backfill_id=make_new_backfill_id(),
        backfill_timestamp=time.time(),
        tags={MODEL_TAG: model},
        dynamic_partitions_store=instance,
        asset_graph_subset=AssetGraphSubset(  # type: ignore[call-arg]  # mypy takes its __hash__ for a field
            {asset: keys for asset, keys in wanted.items() if len(keys)}
        ),
        title=f"{len(plan.sessions)} sessions with {model}",
        description=None,
        run_config=None,
    )
    instance.add_backfill(backfill)
    return backfill.backfill_id


def unfinished_backfills(instance: dg.DagsterInstance, model: str) -> list[str]:
    """Ids of the backfills of the model's lineage that have not ended, the oldest first, whoever launched them."""
    backfills = instance.get_backfills(filters=BulkActionsFilter(statuses=_UNFINISHED))
    of_model = [b for b in backfills if any(key.path[0] == model for key in b.asset_selection or ())]
    return [b.backfill_id for b in sorted(of_model, key=lambda b: b.backfill_timestamp)]


def follow_backfill(
    instance: dg.DagsterInstance, backfill_id: str, check: Callable[[], object] = lambda: None, seconds: float = 1.0
) -> Iterator[Progress]:
    """Give the progress now and then until the backfill has ended.

    check: called each time; raises where waiting has no sense any more. seconds: between two looks.
    """
    from pipelines.definitions import defs

    graph = defs.resolve_asset_graph()
    while True:
        backfill = instance.get_backfill(backfill_id)
        if backfill is None:
            raise AttendanseeError(f"There is no backfill {backfill_id} any more.")
        progress = Progress(backfill.status.value, {})
        for status in backfill.get_asset_backfill_data(graph).get_backfill_status_per_asset_key(graph):
            if isinstance(status, PartitionedAssetBackfillStatus):
                counts = status.partitions_counts_by_status
                progress.stages[status.asset_key.to_user_string()] = Stage(
                    made=counts[AssetBackfillStatus.MATERIALIZED],
                    failed=counts[AssetBackfillStatus.FAILED],
                    wanted=status.num_targeted_partitions,
                )
        yield progress
        if backfill.status in BULK_ACTION_TERMINAL_STATUSES:
            return
        check()
        time.sleep(seconds)


def why_backfill_failed(instance: dg.DagsterInstance, backfill_id: str) -> list[str]:
    """What Dagster says of the backfill, and the sentence that each of its failed runs ended with.

    A run that was tried again counts by its last attempt.
    """
    backfill = instance.get_backfill(backfill_id)
    error = backfill.error if backfill is not None else None
    runs = instance.get_runs(dg.RunsFilter(tags={BACKFILL_TAG: backfill_id}))
    tried_again = {run.parent_run_id for run in runs}
    of_runs = [
        why_it_failed(run.run_id, [entry.get_dagster_event() for entry in instance.all_logs(run.run_id, _REASONS)])
        for run in reversed(runs)
        if run.status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED) and run.run_id not in tried_again
    ]
    return of_runs if error is None else [error.message.strip().partition("\n")[0], *of_runs]
