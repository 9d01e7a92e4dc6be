"""The seven operations on face crops."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, HTTPException, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from pipelines.api.common import Browse, ClassId, Context, FreeCropId, FromJson, Runs, SessionId
from pipelines.api.dagster_runs import DagsterRuns, RunStarted
from pipelines.api.errors import documented
from pipelines.services.answers import (
    AssignmentAnswer,
    BatchEmbeddingAnswer,
    ClassAssignmentAnswer,
    ClassClusteringAnswer,
    EmbeddingAnswer,
    SessionAssignmentAnswer,
    SessionClusteringAnswer,
)
from pipelines.services.context import ServiceContext
from pipelines.services.operations import OPERATIONS, class_concerned
from pipelines.services.parameters import (
    AssignmentParameters,
    BatchEmbeddingParameters,
    ClassClusteringParameters,
    ClusteringParameters,
    EmbeddingParameters,
    Parameters,
)

router = APIRouter(tags=["operations"])

EmbeddingBody = Annotated[EmbeddingParameters, FromJson, Body(default_factory=EmbeddingParameters)]
BatchEmbeddingBody = Annotated[
    BatchEmbeddingParameters, FromJson, Body(examples=[{"face_crop_ids": [1, 2], "model_name": "facenet"}])
]
ClusteringBody = Annotated[ClusteringParameters, FromJson, Body(default_factory=ClusteringParameters)]
ClassClusteringBody = Annotated[ClassClusteringParameters, FromJson, Body(default_factory=ClassClusteringParameters)]
AssignmentBody = Annotated[AssignmentParameters, FromJson, Body(default_factory=AssignmentParameters)]

RunMode = Annotated[
    Literal["dagster"] | None,
    Query(description="dagster: launch the job of the same name and answer 202 at once; absent: run now and answer."),
]
ERRORS = documented(400, 404, 409, 413)
STARTED: dict[int | str, dict[str, Any]] = {202: {"model": RunStarted, "description": "Dagster was asked for the run."}}


@router.post("/face-crops/{id}/generate-embedding/", response_model=EmbeddingAnswer, responses=ERRORS)
def generate_embedding(crop_id: FreeCropId, context: Context, parameters: EmbeddingBody) -> BaseModel:
    """Compute and store the crop's vector, unless there is one already."""
    return _perform("generate_embedding", parameters, context, crop_id=crop_id)


@router.get("/face-crops/generate-embeddings-batch/", include_in_schema=False)
async def no_batch_to_read() -> None:
    """The path is no face crop called `generate-embeddings-batch`."""
    raise HTTPException(405)


@router.post(
    "/face-crops/generate-embeddings-batch/",
    response_model=BatchEmbeddingAnswer,
    responses={**STARTED, **documented(400, 409, 413)},
)
def generate_embeddings_batch(
    context: Context, browse: Browse, runs: Runs, parameters: BatchEmbeddingBody, run: RunMode = None
) -> BaseModel | JSONResponse:
    """Compute and store the vectors of many crops; one that fails is reported and the others go on."""
    runs.check_free(lambda: browse.class_names_of_crops(parameters.face_crop_ids))
    return _perform_or_launch("generate_embeddings_batch", parameters, context, runs, run)


@router.post("/sessions/{id}/cluster-crops/", response_model=SessionClusteringAnswer, responses={**STARTED, **ERRORS})
def cluster_session_crops(
    session_id: SessionId,
    context: Context,
    runs: Runs,
    parameters: ClusteringBody,
    run: RunMode = None,
) -> BaseModel | JSONResponse:
    """Group the session's crops into people, and by default make each new one a provisional student."""
    return _perform_or_launch("cluster_session_crops", parameters, context, runs, run, session_id=session_id)


@router.post("/classes/{id}/cluster-crops/", response_model=ClassClusteringAnswer, responses={**STARTED, **ERRORS})
def cluster_class_crops(
    class_id: ClassId,
    context: Context,
    runs: Runs,
    parameters: ClassClusteringBody,
    run: RunMode = None,
) -> BaseModel | JSONResponse:
    """Group the crops of all the class's sessions into people; confirmed names are kept."""
    return _perform_or_launch("cluster_class_crops", parameters, context, runs, run, class_id=class_id)


@router.post("/face-crops/{id}/assign/", response_model=AssignmentAnswer, responses=ERRORS)
def assign_crop(crop_id: FreeCropId, context: Context, parameters: AssignmentBody) -> BaseModel:
    """Say who the crop shows: the nearest identified crops of its class vote."""
    return _perform("assign_crop", parameters, context, crop_id=crop_id)


@router.post("/sessions/{id}/assign-crops/", response_model=SessionAssignmentAnswer, responses={**STARTED, **ERRORS})
def assign_session_crops(
    session_id: SessionId,
    context: Context,
    runs: Runs,
    parameters: AssignmentBody,
    run: RunMode = None,
) -> BaseModel | JSONResponse:
    """Say who the session's crops show that have no student yet."""
    return _perform_or_launch("assign_session_crops", parameters, context, runs, run, session_id=session_id)


@router.post("/classes/{id}/assign-crops/", response_model=ClassAssignmentAnswer, responses={**STARTED, **ERRORS})
def assign_class_crops(
    class_id: ClassId,
    context: Context,
    runs: Runs,
    parameters: AssignmentBody,
    run: RunMode = None,
) -> BaseModel | JSONResponse:
    """Say who the crops of all the class's sessions show that have no student yet."""
    return _perform_or_launch("assign_class_crops", parameters, context, runs, run, class_id=class_id)


def _perform(name: str, parameters: Parameters, context: ServiceContext, **target: int) -> BaseModel:
    operation = OPERATIONS[name]
    return operation.perform(context, operation.parameters(**parameters.model_dump(), **target), None)


def _perform_or_launch(
    name: str,
    parameters: Parameters,
    context: ServiceContext,
    runs: DagsterRuns,
    mode: Literal["dagster"] | None,
    **target: int,
) -> BaseModel | JSONResponse:
    config: dict[str, Any] = {**parameters.model_dump(), **target}
    with context.database.connection() as connection:
        class_name = class_concerned(connection, OPERATIONS[name].parameters(**config))
    if class_name is not None:
        runs.check_free(lambda: [class_name])
    if mode == "dagster":
        context.models.require(config.get("embedding_model") or config["model_name"])
        return JSONResponse(runs.launch(name, config, class_name).model_dump(), 202)
    return _perform(name, parameters, context, **target)
