"""Errors as JSON: one shape for a sentence, one for parameters, and nothing of a traceback."""

import asyncio
import logging
import re
import traceback
from typing import Any

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.api.common import PREFIX, parameters_of
from pipelines.errors import (
    AttendanseeError,
    ClassBusyError,
    ConflictError,
    DatabaseError,
    ParameterError,
    PhotoError,
    UnknownIdError,
)
from pipelines.services.parameters import problem_sentence

log = logging.getLogger(__name__)

# 100,000 ids of up to 19 digits, the longest list that an operation takes.
MAX_BODY_BYTES = 4 * 1024 * 1024

# The folders of an absolute path, which callers have no use for; a URL's path and a path below a root are left alone.
_FOLDERS = re.compile(r"(?<![\w:/.])/(?:[^/\s'\"(),;]+/)+")

# Every other AttendanseeError (weights, database, photo store, Dagster) is 503: somebody has to set something right.
STATUS: dict[type[AttendanseeError], int] = {
    UnknownIdError: 404,
    ConflictError: 409,
    ClassBusyError: 409,
    PhotoError: 409,
    ParameterError: 422,
}


class Problem(BaseModel):
    """What went wrong, and what to do about it."""

    detail: str


class ParameterProblem(BaseModel):
    """One parameter that cannot be used."""

    loc: list[str | int] = Field(description="Where it was: body, query or path; then its name.")
    msg: str = Field(description="The parameter, what is wrong with it, and its range where it has one.")
    type: str


class ParameterProblems(BaseModel):
    """All parameters that cannot be used."""

    detail: list[ParameterProblem]


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of an operation for its OpenAPI, beside those that any operation may give."""
    descriptions = {
        400: "The body cannot be read.",
        401: "The bearer token is missing or wrong.",
        403: "Without a token, only programs and pages on this machine are served.",
        404: "There is nothing of that id.",
        409: "A Dagster run or another call is processing the class just now, or what is asked for contradicts what is "
        "stored.",
        413: "The body is too large.",
        422: "A parameter cannot be used.",
        503: "Weights, database, photos or Dagster are missing, or the server is busy or stopping; the detail says "
        "which, and the remedy.",
    }
    return {
        status: {"model": ParameterProblems if status == 422 else Problem, "description": descriptions[status]}
        for status in sorted({401, 403, 422, 503, *statuses})
    }


def add_error_handlers(app: FastAPI) -> None:
    """Answer the errors that are meant for a person, and those of a restarted database, in JSON."""

    @app.exception_handler(AttendanseeError)
    async def answer_ours(request: Request, error: AttendanseeError) -> JSONResponse:
        status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 503)
        if status == 422:
            return _answer(422, [{"loc": ["body"], "msg": str(error), "type": "parameter_error"}])
        if isinstance(error, DatabaseError):
            # Its message is for who runs the server: it names the database's host or folder.
            log.warning("%s: %s", _route_name(request.scope), error)
            return _answer(503, "The database cannot be used: who runs this server finds the reason in its log.")
        return _answer(status, _FOLDERS.sub("", str(error)) if status == 503 else str(error))

    @app.exception_handler(psycopg.OperationalError)
    async def answer_database(request: Request, error: psycopg.OperationalError) -> JSONResponse:
        log.warning("%s: the database failed (%s)", _route_name(request.scope), type(error).__name__)
        return _answer(503, "The database was restarted or cannot be reached: try again.")

    @app.exception_handler(psycopg.IntegrityError)
    async def answer_race(_: Request, __: psycopg.IntegrityError) -> JSONResponse:
        # Such as a crop that was deleted while it was assigned, for its photo was searched anew.
        return _answer(409, "What this is about was changed at the same moment: look again, then try again.")

    @app.exception_handler(405)
    async def answer_method(request: Request, _: HTTPException) -> JSONResponse:
        # Starlette names the methods of the first function of the path, and there may be several.
        # What is no operation of the API is a page, and some of those leave no route in the scope.
        path = PREFIX + getattr(request.scope.get("route"), "path_format", "")
        methods = app.openapi()["paths"].get(path, {"get": {}})
        allow = ", ".join(sorted(method.upper() for method in methods))
        return JSONResponse({"detail": f"This path takes {allow}."}, 405, {"Allow": allow})

    @app.exception_handler(RequestValidationError)
    async def answer_parameters(request: Request, error: RequestValidationError) -> JSONResponse:
        # Of something that is no operation there is nothing to be known.
        route = request.scope.get("route")
        fields = dict(parameters_of(route.dependant)) if route else {}
        return _answer(422, [_problem(fields, problem) for problem in error.errors()])


def _answer(status: int, detail: Any) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)


def _problem(fields: dict[str, FieldInfo], problem: dict[str, Any]) -> dict[str, Any]:
    """One of pydantic's findings without the value that was given: it may be a name, or no JSON at all."""
    where, *place = (_text(part) for part in problem["loc"])
    if problem["type"] == "json_invalid":
        return {"loc": [where], "msg": f"The body is not JSON, see character {place[0]}.", "type": problem["type"]}
    field = fields.get(str(place[0])) if place else None
    name = f"The parameter {'.'.join(map(str, place))}" if place else f"The {where}"
    return {
        "loc": [where, *place],
        "msg": problem_sentence(name, field, problem),
        "type": problem["type"],
    }


def _text(part: str | int) -> str | int:
    """A name as it can be sent: JSON may hold half of a surrogate pair, which UTF-8 cannot."""
    return part.encode("utf-8", "backslashreplace").decode() if isinstance(part, str) else part


def _route_name(scope: Scope) -> str:
    """The operation that was asked for, without ids."""
    return getattr(scope.get("route"), "name", "no operation")


class BodyLimit:
    """Answers 413 to a larger body than MAX_BODY_BYTES, as soon as that is known.

    FastAPI's own limit answers in plain text, outside of all middlewares, and raises through them for a body in chunks.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        sentence = f"The body is larger than {MAX_BODY_BYTES // 1024**2} MiB: send less at a time."
        length = Headers(scope=scope).get("content-length", "") if scope["type"] == "http" else ""
        if length.isdecimal() and int(length) > MAX_BODY_BYTES:
            await _answer(413, sentence)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, sentence)  # answered where the body is read
            return message

        await self.app(scope, counted, send)


class UnforeseenErrors:
    """Answers 500 to what nobody foresaw, and logs where it happened but not with what: a message may hold names.

    Answers 503 to calls that a stopping server cuts off.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except HTTPException:
            raise
        except asyncio.CancelledError:
            # The call's thread cannot be stopped: the process ends when it has ended.
            log.warning("%s was cut off, for the server stops; its work goes on to its end", _route_name(scope))
            if not started and scope["type"] == "http":
                answer = _answer(
                    503, "The server is stopping, and this call may still be carried out: look before you try again."
                )
                await answer(scope, receive, send)
            raise
        except Exception as error:
            if scope["type"] != "http":
                raise
            place = "".join(traceback.format_tb(error.__traceback__, limit=-8))
            log.error("%s failed with %s:\n%s", _route_name(scope), type(error).__name__, place)
            if not started:
                answer = _answer(500, "The server made a mistake; where is in its log. Nothing was changed.")
                await answer(scope, receive, send)
