"""What every asset shares: labels, and the loop over a run's partitions."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from time import perf_counter
from typing import Any

import dagster as dg
import psycopg
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from pipelines.errors import AttendanseeError
from pipelines.partitions import SessionKey, parse_session_key, sessions
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.settings import get_settings

# Beta in Dagster 1.13; said once here, and not 22 times at every start of a process.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy`", category=dg.BetaWarning)

OWNERS = ["team:attendansee"]
TAGS = {"domain": "attendance", "pii": "true"}
# Runs of a backfill take several sessions each: start-up is paid once for them, and a failure costs no more than them.
BACKFILL = dg.BackfillPolicy.multi_run(max_partitions_per_run=get_settings().sessions_per_run)

# What nobody foresaw is tried once more, such as a database that was restarted under a step; what is wrong for good
# (AttendanseeError) is not.
RETRY = dg.RetryPolicy(max_retries=1, delay=2)

# In a run over many partitions, `<this>/<asset>/<partition>` says why that one failed there.
FAILED_TAG = "attendansee/failed"
# PostgreSQL's index over tags takes some 2,700 bytes.
_TAG_LENGTH = 500
_NAMED = 20


def model_asset(spec: ModelSpec, name: str) -> dg.AssetKey:
    """The key of an asset in a model's lineage."""
    return dg.AssetKey([spec.name, name])


def lineage_asset(
    spec: ModelSpec,
    name: str,
    *,
    deps: Sequence[dg.AssetKey | dg.AssetsDefinition | dg.AssetDep],
    kinds: set[str],
    description: str,
    partitions_def: dg.PartitionsDefinition = sessions,
    pool: str | None = None,
) -> Callable[[Callable[..., dg.MaterializeResult | None]], dg.AssetsDefinition]:
    """`@dg.asset` with what all assets of a model's lineage share.

    The code version changes with the algorithm's number and with the model's published weights.
    """
    return dg.asset(
        key=model_asset(spec, name),
        deps=deps,
        partitions_def=partitions_def,
        group_name=spec.name,
        kinds=kinds,
        owners=OWNERS,
        tags=TAGS,
        code_version=f"1+{spec.name}-{spec.weights_sha256[:12]}",
        backfill_policy=BACKFILL,
        retry_policy=RETRY,
        pool=pool,
        description=description,
    )


@contextmanager
def plain_failure(prefix: str = "") -> Iterator[None]:
    """Let a step fail with the sentence meant for a person, and not a second time for the same reason."""
    try:
        yield
    except Exception as error:
        without_rows(error)
        if isinstance(error, AttendanseeError):
            raise dg.Failure(f"{prefix}{error}", allow_retries=False) from error
        raise


def without_rows(error: BaseException) -> None:
    """Leave out of an error, and of those that led to it, what PostgreSQL says after the first line.

    Those lines show rows, which may be vectors, and Dagster writes an error with its causes into the event log.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, psycopg.Error):
            cause.args = (str(cause).partition("\n")[0],)
        cause = cause.__cause__ or cause.__context__


def for_each_session(
    context: dg.AssetExecutionContext, work: Callable[[SessionKey], Mapping[str, Any]], **parameters: Any
) -> dg.MaterializeResult:
    """`for_each_partition` of an asset that has one for each session, with the same parameters recorded on all."""
    return for_each_partition(context, lambda key: {**work(parse_session_key(key)), **parameters})


def for_each_partition(
    context: dg.AssetExecutionContext, work: Callable[[str], Mapping[str, Any]]
) -> dg.MaterializeResult:
    """Do the work for every partition of the run, and record the metadata that it returns on that partition.

    In a run over a range of them, one that fails does not stop the others: it is not recorded as made, the later stages
    of the run leave it out, and the last stage fails and names it with its reason.
    """
    keys = context.partition_keys
    failed = {} if len(keys) == 1 else failed_partitions(context, *context.assets_def.asset_deps[context.asset_key])
    made: dict[str, Mapping[str, Any]] = {}
    unforeseen: Exception | None = None
    for key in keys:
        if key in failed:
            continue
        started = perf_counter()
        try:
            made[key] = _timed(context, key, started, work(key))
        except AttendanseeError as error:
            failed[key] = str(error)
        except Exception as error:  # noqa: BLE001 - raised below, once the others are done
            without_rows(error)
            unforeseen, failed[key] = error, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if key in failed:
            context.log.error(f"{key}: {failed[key]}")
    if unforeseen is not None and (len(keys) == 1 or context.retry_number < RETRY.max_retries):
        raise unforeseen
    # Of the run that this one repeats: noted there, inherited with its tags, and made now.
    if formerly := failed_partitions(context, context.asset_key).keys() & made.keys():
        note_failed(context, context.asset_key, dict.fromkeys(formerly, ""))
    if not failed:
        for key, metadata in made.items():
            # What is returned with the result would be copied to every partition.
            context.add_asset_metadata(metadata, partition_key=key)
        return dg.MaterializeResult()
    for key, metadata in made.items():
        context.log_event(dg.AssetMaterialization(context.asset_key, partition=key, metadata=metadata))
    if made and is_followed(context, context.asset_key):
        note_failed(context, context.asset_key, failed)
        # Dagster would record every partition of the range as made; with this key, which it has for observations, it
        # leaves the recording to the lines above.
        return dg.MaterializeResult(metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True})
    raise dg.Failure(_named(failed, len(keys)), allow_retries=False)


def _named(failed: Mapping[str, str], total: int) -> str:
    """The sentence that a run ends with."""
    reasons = "; ".join(f"{key}: {reason}" for key, reason in list(failed.items())[:_NAMED])
    return reasons if len(failed) == total else f"{len(failed)} of {total} failed, the others are done. {reasons}"


def is_followed(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, asset: dg.AssetKey) -> bool:
    """Whether a later stage of this run builds on the asset."""
    layer = context.job_def.asset_layer
    return not layer.asset_graph.get(asset).child_keys.isdisjoint(layer.selected_asset_keys)


def note_failed(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, asset: dg.AssetKey, reasons: Mapping[str, str]
) -> None:
    """Say to the later stages of this run which partitions of the asset they must leave out, and why.

    In the run's tags, which everybody sees and a retry of the run inherits. No tag can be removed from a run: an empty
    reason says that the partition has not failed.
    """
    prefix = _failed_prefix(asset)
    context.instance.add_run_tags(
        context.run.run_id, {f"{prefix}{key}": reason[:_TAG_LENGTH] for key, reason in reasons.items()}
    )


def failed_partitions(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, *assets: dg.AssetKey
) -> dict[str, str]:
    """The partitions that failed in these assets earlier in this run, with their reasons."""
    run = context.instance.get_run_by_id(context.run.run_id)
    prefixes = tuple(map(_failed_prefix, assets))
    tags = run.tags.items() if run is not None else ()
    return {
        tag.removeprefix(prefix): reason
        for tag, reason in tags
        for prefix in prefixes
        if reason and tag.startswith(prefix)
    }


def _failed_prefix(asset: dg.AssetKey) -> str:
    return f"{FAILED_TAG}/{asset.to_user_string()}/"


def _timed(context: dg.AssetExecutionContext, key: str, started: float, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with the time since `started` (of perf_counter); the run's log says the numbers."""
    seconds = perf_counter() - started
    numbers = ", ".join(f"{name} {value}" for name, value in metadata.items() if type(value) is int)
    context.log.info(f"{key}: {numbers} ({seconds:.1f} s)")
    return {**metadata, "duration_seconds": round(seconds, 3)}


def record(context: dg.AssetExecutionContext, partition_key: str, started: float, metadata: Mapping[str, Any]) -> None:
    """Attach metadata and the time since `started` (of perf_counter) to one partition of the asset being made."""
    context.add_asset_metadata(_timed(context, partition_key, started, metadata), partition_key=partition_key)


def counts(report: Any) -> dict[str, Any]:
    """A report dataclass as metadata; mappings become tables of two columns."""
    return {
        name: table(value, "name", "reason") if isinstance(value, dict) else value
        for name, value in asdict(report).items()
    }


def table(rows: Mapping[Any, Any], *columns: str) -> dg.TableMetadataValue:
    """A mapping as a table in the UI."""
    return dg.MetadataValue.table(
        [dg.TableRecord(dict(zip(columns, (str(k), str(v)), strict=True))) for k, v in rows.items()],
        schema=dg.TableSchema([dg.TableColumn(column) for column in columns]),
    )
