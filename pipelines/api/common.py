"""What the routers share: ids in paths, pages, text, and the services' context."""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Body, Depends, Path, Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from pipelines.api.dagster_runs import DagsterRuns
from pipelines.services.browse import BrowseService
from pipelines.services.context import ServiceContext
from pipelines.services.decisions import MAX_CROPS, MAX_NAME_LENGTH, MAX_REASON_LENGTH, DecisionService
from pipelines.services.parameters import MAX_ID, Id

PREFIX = "/api/attendance"
# Control characters and line separators, for a character class.
_UNSHOWABLE = r"\x00-\x1f\x7f-\x9f\u2028\u2029"


def _path_id(what: str) -> Any:
    return Path(alias="id", ge=1, le=MAX_ID, description=f"Id of the {what}.", examples=[1])


ClassId = Annotated[int, _path_id("class")]
SessionId = Annotated[int, _path_id("session")]
ImageId = Annotated[int, _path_id("photo")]
CropId = Annotated[int, _path_id("face crop")]
StudentId = Annotated[int, _path_id("student")]
DecisionId = Annotated[int, _path_id("decision")]


def parameters_of(dependant: Dependant) -> Iterator[tuple[str, FieldInfo]]:
    """The parameters of an operation and of what it depends on, by the names that callers use."""
    for parameter in (*dependant.path_params, *dependant.query_params, *dependant.body_params):
        kind = parameter.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from kind.model_fields.items()
        else:
            yield parameter.alias, parameter.field_info
    for part in dependant.dependencies:
        yield from parameters_of(part)


async def known_names_only(request: Request) -> None:
    """Refuse unknown names in a query: a misspelt filter must not give the whole list, nor `?runn=dagster` run now."""
    route = request.scope["route"]
    known = {name for name, _ in parameters_of(Dependant(query_params=route.dependant.query_params))}
    # A path that is no operation, and answers 405, takes any.
    unknown = [name for name in request.query_params if name not in known and route.include_in_schema]
    if unknown:
        raise RequestValidationError(
            [
                {"type": "extra_forbidden", "loc": ("query", name), "msg": "there is no such name", "input": None}
                for name in unknown
            ]
        )


class PageQuery(BaseModel):
    """Which part of a list."""

    limit: int = Field(default=50, ge=1, le=200, description="Length of the page.")
    offset: int = Field(default=0, ge=0, le=MAX_ID, description="How many to leave out before it.")


Paging = Annotated[PageQuery, Query()]


def _from_json(value: Any) -> Any:
    """A body as JSON means it, for models that take Python's types strictly: 7.0 is the whole number 7."""
    if isinstance(value, dict):
        # Dagster's Config.__init__ takes the fields as keyword arguments beside its own `self`.
        if "self" in value:
            raise ValueError("there is no parameter self")
        return {name: _from_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_from_json(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


# On every body.
FromJson = BeforeValidator(_from_json)

# What `clean_name` and `clean_reason` of the decisions take, so that the OpenAPI says it too.
Name = Annotated[
    str,
    Field(
        max_length=MAX_NAME_LENGTH,
        pattern=rf"^[^{_UNSHOWABLE}]*[^\s{_UNSHOWABLE}][^{_UNSHOWABLE}]*$",
        description="Spaces around it are left out.",
    ),
]
_Text = Annotated[str, Field(max_length=MAX_REASON_LENGTH, pattern=rf"^([^{_UNSHOWABLE}]|[\t\n\r])*$")]
Reason = Annotated[_Text | None, Field(description="Why, for those who look at the decision later.")]

CropIds = Annotated[
    list[Id], Field(min_length=1, max_length=MAX_CROPS, description="Ids of the face crops, of one class.")
]


class ManyCrops(BaseModel):
    """Which face crops, and why."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"crop_ids": [1, 2]}]})

    crop_ids: CropIds
    reason: Reason = None


CropsBody = Annotated[ManyCrops, FromJson, Body()]


class ReasonOnly(BaseModel):
    """Why, where there is nothing else to say."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"reason": "seen twice"}]})

    reason: Reason = None


ReasonBody = Annotated[ReasonOnly, FromJson, Body(default_factory=ReasonOnly)]

# There is one token for all callers, so that nobody is known by name; `attendansee review` knows who has started it.
DECIDED_BY = "api"


async def _context(request: Request) -> ServiceContext:
    return request.app.state.context


async def _dagster_runs(request: Request) -> DagsterRuns:
    return request.app.state.dagster_runs


Context = Annotated[ServiceContext, Depends(_context)]
Runs = Annotated[DagsterRuns, Depends(_dagster_runs)]


async def _decisions(request: Request, context: Context) -> DecisionService:
    return DecisionService(decided_by=request.app.state.decided_by, context=context)


Decisions = Annotated[DecisionService, Depends(_decisions)]


async def _browse(context: Context) -> BrowseService:
    return BrowseService(context.database)


Browse = Annotated[BrowseService, Depends(_browse)]


def _free_crop(crop_id: CropId, browse: Browse, runs: Runs) -> int:
    runs.check_free(lambda: browse.class_names_of_crops([crop_id]))
    return crop_id


def _free_student(student_id: StudentId, browse: Browse, runs: Runs) -> int:
    runs.check_free(lambda: browse.class_names_of_student(student_id))
    return student_id


def _free_session(session_id: SessionId, browse: Browse, runs: Runs) -> int:
    runs.check_free(lambda: browse.class_names_of_session(session_id))
    return session_id


def _free_decision(decision_id: DecisionId, browse: Browse, runs: Runs) -> int:
    runs.check_free(lambda: browse.class_names_of_decision(decision_id))
    return decision_id


# Ids in the paths of calls that write: 409 while a run is processing the class.
FreeCropId = Annotated[int, Depends(_free_crop)]
FreeStudentId = Annotated[int, Depends(_free_student)]
FreeSessionId = Annotated[int, Depends(_free_session)]
FreeDecisionId = Annotated[int, Depends(_free_decision)]
