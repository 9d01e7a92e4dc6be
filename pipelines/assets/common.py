"""What every asset shares: labels, and the loop over a run's partitions."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from time import perf_counter
from typing import Any

import dagster as dg

from pipelines.errors import AttendanseeError
from pipelines.partitions import SessionKey, parse_session_key, sessions
from pipelines.resources.embedding.registry import ModelSpec

# Beta in Dagster 1.13; said once here, and not 22 times at every start of a process.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy`", category=dg.BetaWarning)

OWNERS = ["team:attendansee"]
TAGS = {"domain": "attendance", "pii": "true"}
# Runs of a backfill take 25 sessions each: start-up is paid once for them, and a failure costs no more than them.
BACKFILL = dg.BackfillPolicy.multi_run(max_partitions_per_run=25)

# What nobody foresaw is tried once more, such as a database that was restarted under a step; what is wrong for good
# (AttendanseeError) is not.
RETRY = dg.RetryPolicy(max_retries=1, delay=2)


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
) -> Callable[[Callable[..., None]], dg.AssetsDefinition]:
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
        description=description,
    )


@contextmanager
def plain_failure(prefix: str = "") -> Iterator[None]:
    """Let a step fail with the sentence meant for a person, and not a second time for the same reason."""
    try:
        yield
    except AttendanseeError as error:
        raise dg.Failure(f"{prefix}{error}", allow_retries=False) from error


def for_each_session(
    context: dg.AssetExecutionContext, work: Callable[[SessionKey], Mapping[str, Any]], **parameters: Any
) -> None:
    """Do the work for every session of the run, and record its counts, duration and parameters on that partition.

    In a run over a range of partitions, metadata that is returned would be copied to every partition.
    """
    for partition_key in context.partition_keys:
        started = perf_counter()
        with plain_failure(f"{partition_key}: "):
            metadata = work(parse_session_key(partition_key))
        record(context, partition_key, started, {**metadata, **parameters})


def record(context: dg.AssetExecutionContext, partition_key: str, started: float, metadata: Mapping[str, Any]) -> None:
    """Attach metadata and the time since `started` (of perf_counter) to one partition of the asset being made."""
    seconds = perf_counter() - started
    context.add_asset_metadata({**metadata, "duration_seconds": round(seconds, 3)}, partition_key=partition_key)
    numbers = ", ".join(f"{name} {value}" for name, value in metadata.items() if type(value) is int)
    context.log.info(f"{partition_key}: {numbers} ({seconds:.1f} s)")


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
