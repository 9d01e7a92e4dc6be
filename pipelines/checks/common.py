"""What every check shares."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import dagster as dg

from pipelines.assets.common import failed_partitions, is_followed, note_failed
from pipelines.partitions import SessionKey, parse_session_key


def check_each_session(
    context: dg.AssetCheckExecutionContext,
    find: Callable[[SessionKey], list[str]],
    *,
    severity: dg.AssetCheckSeverity,
    **metadata: Any,
) -> dg.AssetCheckResult:
    """Passed when `find` finds nothing in any of the run's sessions; what it finds is named, 20 items at the most.

    An error that only some of the sessions have stops those alone: it becomes a warning, which blocks nothing, and the
    later stages of the run leave them out.
    """
    asset = context.check_specs[0].asset_key
    keys = context.op_execution_context.partition_keys
    failed = {} if len(keys) == 1 else failed_partitions(context, asset)
    found = {key: find(parse_session_key(key)) for key in keys if key not in failed}
    spoilt = {key: items for key, items in found.items() if items}
    if severity is dg.AssetCheckSeverity.ERROR and 0 < len(spoilt) < len(found) and is_followed(context, asset):
        note_failed(context, asset, {key: "; ".join(items) for key, items in spoilt.items()})
        severity = dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        passed=not spoilt,
        severity=severity,
        description="; ".join(list(chain.from_iterable(spoilt.values()))[:20]) or None,
        metadata={"sessions": len(found), "found": sum(map(len, spoilt.values())), **metadata},
    )
