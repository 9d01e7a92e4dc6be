"""The application: routers, errors, guard."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.api import classes, decisions, face_crops, images, operations, review, sessions, students
from pipelines.api.auth import Guard, SecurityHeaders, token_of
from pipelines.api.common import DECIDED_BY, PREFIX, known_names_only
from pipelines.api.dagster_runs import DagsterRuns
from pipelines.api.documentation import page
from pipelines.api.errors import BodyLimit, UnforeseenErrors, add_error_handlers
from pipelines.api.writers import THREADS, WRITERS, one_of_the_writers
from pipelines.resources.database import Database
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.context import ServiceContext
from pipelines.services.parameters import MAX_ID
from pipelines.settings import Settings

# How long a call waits for a class that somebody else is deciding about.
LOCK_PATIENCE_S = 5

DESCRIPTION = """\
The operations on face crops, the reads and the edits that the workflows need. Lists come in pages (`limit`, `offset`)
in the order of ids, which never change. Similarities are calibrated: 0.5 is the model's own verification threshold.
"""


def create_app(settings: Settings, *, decided_by: str = DECIDED_BY) -> FastAPI:
    """The application that serves the database, photos and models of these settings.

    decided_by: in whose name its callers decide, for the log of decisions.

    Models are loaded at the first call that needs them and stay in memory.
    """
    runs = DagsterRuns(settings)
    token = token_of(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        import anyio.to_thread

        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield
        runs.close()

    app = FastAPI(
        title="AttendanSee",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own page loads scripts from the internet
        redoc_url=None,
        redirect_slashes=False,  # a redirected POST loses its body
        generate_unique_id_function=_operation_id,
    )
    app.state.context = ServiceContext(
        Database(),
        PhotoStore.from_settings(settings),
        EmbeddingModels.from_settings(settings),
        settings,
        lock_patience_s=LOCK_PATIENCE_S,
    )
    app.state.decided_by = decided_by
    app.state.dagster_runs = runs
    app.state.writers = asyncio.Semaphore(WRITERS)
    # The guard asks for the token; this says so in the OpenAPI.
    bearer = [Depends(HTTPBearer(auto_error=False, scheme_name="token"))] if token else []
    api = APIRouter(prefix=PREFIX, dependencies=[*bearer, Depends(known_names_only), Depends(one_of_the_writers)])
    for part in (operations, classes, review, sessions, images, face_crops, students, decisions):
        api.include_router(part.router)
    app.include_router(api)
    app.include_router(review.pages)
    app.add_api_route("/docs", lambda: HTMLResponse(page(app.openapi())), include_in_schema=False)
    app.openapi = lambda: _with_exact_bounds(FastAPI.openapi(app))  # type: ignore[method-assign]
    add_error_handlers(app)
    # The last one added is the first to see a request.
    # A review of a large class is 10 MB of much the same sentences, 0.5 MB compressed; pictures are below the size.
    app.add_middleware(GZipMiddleware, minimum_size=100_000, compresslevel=1)
    app.add_middleware(TrailingSlash)
    app.add_middleware(BodyLimit)
    app.add_middleware(Guard, token=token)
    app.add_middleware(UnforeseenErrors)
    app.add_middleware(SecurityHeaders)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _with_exact_bounds(schema: Any) -> Any:
    """FastAPI writes bounds as floats, and the largest id as a float is no id."""
    if isinstance(schema, dict):
        if isinstance(schema.get("maximum"), float) and schema.get("type") == "integer":
            schema["minimum"], schema["maximum"] = int(schema["minimum"]), min(int(schema["maximum"]), MAX_ID)
        for part in schema.values():
            _with_exact_bounds(part)
    elif isinstance(schema, list):
        for part in schema:
            _with_exact_bounds(part)
    return schema


class TrailingSlash:
    """Serves a path of the API without its last slash as the one with it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["path"].startswith(PREFIX) and not scope["path"].endswith("/"):
            scope["path"] += "/"
        await self.app(scope, receive, send)
