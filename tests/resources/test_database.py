"""Connections of the database resource."""

import numpy as np
from psycopg.adapt import PyFormat


def test_connections_share_what_they_know_of_vectors(database):
    """A class of its own for each connection would never be freed."""
    with database.connection() as one, database.connection() as other:
        dumpers = [connection.adapters.get_dumper(np.ndarray, PyFormat.BINARY) for connection in (one, other)]
        (vector,) = other.execute("SELECT %b::vector", [np.array([1, 2.5], np.float32)]).fetchone()
    assert dumpers[0] is dumpers[1]
    assert vector.to_list() == [1, 2.5]
