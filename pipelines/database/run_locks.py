"""Which Dagster runs are being worked on: a lock per run, which PostgreSQL gives up with the connection that holds it.

So a worker that is killed, and everything that it held, is known at once, without heartbeats and their patience. A restart
of PostgreSQL ends these connections too: a run that then goes on for long is taken for lost and retried beside itself, which
costs its work and nothing else.
"""

from uuid import UUID

from psycopg import Connection

# A machine that loses its power closes no connection: PostgreSQL asks after 30 s of silence, and gives up 30 s later.
_KEEPALIVE = {"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}


def hold_run(connection: Connection, run_id: str) -> bool:
    """Hold the run for as long as the connection is open; False where another connection holds it already.

    run_id: Dagster's, a UUID. Commits, so that no transaction stays open for the length of a run.
    """
    for name, value in _KEEPALIVE.items():
        connection.execute("SELECT set_config(%s, %s, false)", [name, value])
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", [_key(run_id)]).fetchone()
    connection.commit()
    assert row is not None, "a function gives a row"
    return row[0]


def is_held(connection: Connection, run_id: str) -> bool:
    """Whether any process works on the run."""
    # Shared, so that two who ask at once do not take each other for a worker.
    row = connection.execute("SELECT pg_try_advisory_xact_lock_shared(%s)", [_key(run_id)]).fetchone()
    assert row is not None, "a function gives a row"
    return not row[0]


def _key(run_id: str) -> int:
    """PostgreSQL's locks are named by 64-bit integers: the first half of the UUID, almost all of it random."""
    return int.from_bytes(UUID(run_id).bytes[:8], "big", signed=True)
