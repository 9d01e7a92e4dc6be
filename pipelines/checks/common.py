"""What every check shares."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from pipelines.partitions import SessionKey, parse_session_key


def check_each_session(
    context: dg.AssetCheckExecutionContext,
    find: Callable[[SessionKey], list[str]],
    *,
    severity: dg.AssetCheckSeverity,
    **metadata: Any,
) -> dg.AssetCheckResult:
    """Passed when `find` finds nothing in any of the run's sessions; what it finds is named, 20 items at the most."""
    keys = context.op_execution_context.partition_keys
    found = [item for key in keys for item in find(parse_session_key(key))]
    return dg.AssetCheckResult(
        passed=not found,
        severity=severity,
        description="; ".join(found[:20]) or None,
        metadata={"sessions": len(keys), "found": len(found), **metadata},
    )
