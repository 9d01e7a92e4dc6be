"""How many calls may write at once, so that those which wait for a busy class leave threads for the reads."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request

from pipelines.errors import AttendanseeError

# A call holds a thread and a connection while it works; PostgreSQL takes 100 connections by default.
THREADS = 16
WRITERS = THREADS // 2
# How long a call waits, without a thread, to become one of the writers.
QUEUE_PATIENCE_S = 5


class ServerBusyError(AttendanseeError):
    """As many calls are writing as may: the same call succeeds later."""


async def one_of_the_writers(request: Request) -> AsyncIterator[None]:
    """A dependency that holds one of the writers' places during a call that writes; reads need none."""
    if request.method == "GET":
        yield
        return
    places: asyncio.Semaphore = request.app.state.writers
    try:
        await asyncio.wait_for(places.acquire(), QUEUE_PATIENCE_S)
    except asyncio.TimeoutError as error:  # not the built-in one in Python 3.10
        raise ServerBusyError(f"The server is busy with {WRITERS} calls that write: try again in a moment.") from error
    try:
        yield
    finally:
        places.release()
