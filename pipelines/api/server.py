"""`attendansee api`: serve the application until Ctrl-C."""

import asyncio
import gc
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import closing

import uvicorn

from pipelines.api.app import create_app
from pipelines.api.auth import token_of
from pipelines.api.common import DECIDED_BY
from pipelines.errors import AttendanseeError
from pipelines.resources.database import Database
from pipelines.settings import Settings

# How long Ctrl-C waits for calls that are being answered. Those that take longer, or all when Ctrl-C comes again, are
# answered 503 then; threads cannot be stopped, so that their work goes on, is committed, and ends before the process.
STOPPING_SECONDS = 60


class ServeError(AttendanseeError):
    """The API cannot be served there."""


def print_address(url: str) -> None:
    """Say where the API is."""
    print(f"HTTP API: {url} (its description: {url}/docs; Ctrl-C stops it)", flush=True)


def run_api(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    decided_by: str = DECIDED_BY,
    serving: Callable[[str], None] = print_address,
) -> None:
    """Serve the API at http://host:port until SIGINT or SIGTERM arrives.

    decided_by: in whose name its callers decide. serving: called with the address once it answers.

    Raises ServeError where the port is in use, or where other machines could reach it and no token is set; DatabaseError
    where there is no usable database.
    """
    with closing(_listen(host, port, token_is_set=token_of(settings) is not None)) as listener:
        with Database().connection():
            pass  # found or started, and migrated, before anybody calls
        server = _Server(
            uvicorn.Config(
                create_app(settings, decided_by=decided_by),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=STOPPING_SECONDS,
            ),
            serving,
        )
        # uvicorn raises the signal that ended it once more when it is done, which would end us unclean. This stays so:
        # a further Ctrl-C would break into the interpreter's wait for the threads with a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _ignore)
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
        # What was imported is never garbage: without it in its way, the collector slows a large review by a third less.
        gc.freeze()
        # A decision goes to the database and back hundreds of times; at the default of 5 ms it waits that often for a review
        # that is put together in another thread.
        sys.setswitchinterval(0.0005)
        server.run([listener])
    if not server.started:
        raise ServeError("The API did not start: the reason is said above.")
    print("Stopped.", flush=True)


class _Server(uvicorn.Server):
    """Says where it serves, once it does; ends in order on a second Ctrl-C too."""

    def __init__(self, config: uvicorn.Config, serving: Callable[[str], None]) -> None:
        super().__init__(config)
        self.serving = serving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            self.serving(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            # uvicorn leaves these to the end of the event loop, which then prints a traceback.
            for task in self.server_state.tasks:
                task.cancel()
            await self.lifespan.shutdown()


def _listen(host: str, port: int, *, token_is_set: bool) -> socket.socket:
    if not 0 <= port <= 65535:  # of a larger one the operating system takes the last 16 bits
        raise ServeError(f"There is no port {port}: choose one from 1 to 65535 with --port, or 0 for any that is free.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # The address itself, not its name: whatever "localhost" may stand for on this machine.
        if not token_is_set and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
            raise ServeError(
                f"Other machines reach {host}, and no token is set: set ATTENDANSEE_API_TOKEN to a long random word, "
                "or serve 127.0.0.1."
            )
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise ServeError(f"Port {port} of {host} cannot be used ({reason}): choose another with --port.") from error


def _ignore(*_: object) -> None:
    """What happens to a signal that uvicorn has dealt with."""


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Leaves out uvicorn's traceback of a call that was cut off: `UnforeseenErrors` has answered it and said so."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, asyncio.CancelledError)
