"""The operations on face crops by name: what jobs, command line and HTTP have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from pydantic import BaseModel, Field

from pipelines.database import browse, catalog
from pipelines.services.assignment import FaceCropAssignmentService
from pipelines.services.clustering import FaceCropClusteringService
from pipelines.services.context import ServiceContext
from pipelines.services.embedding import EmbeddingService
from pipelines.services.parameters import (
    AssignmentParameters,
    BatchEmbeddingParameters,
    ClassClusteringParameters,
    ClusteringParameters,
    EmbeddingParameters,
    Id,
    Parameters,
)

_CROP_ID: Any = Field(description="Id of the face crop.")
_SESSION_ID: Any = Field(description="Id of the session.")
_CLASS_ID: Any = Field(description="Id of the class.")


class GenerateEmbedding(EmbeddingParameters):
    """Which crop is embedded, and how."""

    crop_id: Id = _CROP_ID


class ClusterSessionCrops(ClusteringParameters):
    """Which session is clustered, and how."""

    session_id: Id = _SESSION_ID


class ClusterClassCrops(ClassClusteringParameters):
    """Which class is clustered, and how."""

    class_id: Id = _CLASS_ID


class AssignCrop(AssignmentParameters):
    """Which crop is assigned, and how."""

    crop_id: Id = _CROP_ID


class AssignSessionCrops(AssignmentParameters):
    """Which session's crops are assigned, and how."""

    session_id: Id = _SESSION_ID


class AssignClassCrops(AssignmentParameters):
    """Which class's crops are assigned, and how."""

    class_id: Id = _CLASS_ID


@dataclass(frozen=True)
class Operation:
    """One operation: its parameters, and the call of the service that does it (with the run's id where there is one)."""

    name: str
    description: str
    parameters: type[Parameters]
    perform: Callable[[ServiceContext, Any, str | None], BaseModel]


def class_concerned(connection: Connection, parameters: Parameters) -> str | None:
    """The name of the class that an operation is about; None for a list of crops of several. Raises UnknownIdError."""
    match parameters:
        case GenerateEmbedding() | AssignCrop():
            class_id = catalog.class_of_crop(connection, parameters.crop_id)
        case ClusterSessionCrops() | AssignSessionCrops():
            class_id = catalog.session_by_id(connection, parameters.session_id).class_id
        case ClusterClassCrops() | AssignClassCrops():
            class_id = parameters.class_id
        case BatchEmbeddingParameters():
            names = browse.class_names_of_crops(connection, parameters.face_crop_ids)
            return names.pop() if len(names) == 1 else None
        case _:
            return None
    return catalog.class_by_id(connection, class_id)


def _generate_embedding(context: ServiceContext, p: GenerateEmbedding, _: str | None) -> BaseModel:
    return EmbeddingService(p.model_name, context=context).generate_crop_embedding(p.crop_id, p.force_regenerate)


def _generate_embeddings_batch(context: ServiceContext, p: BatchEmbeddingParameters, _: str | None) -> BaseModel:
    service = EmbeddingService(p.model_name, context=context)
    return service.generate_crop_embeddings(p.face_crop_ids, p.force_regenerate)


def _cluster_session_crops(context: ServiceContext, p: ClusterSessionCrops, run_id: str | None) -> BaseModel:
    return _clustering(context, p).cluster_session_crops(p.session_id, p.create_students, p.assign_crops, run_id)


def _cluster_class_crops(context: ServiceContext, p: ClusterClassCrops, run_id: str | None) -> BaseModel:
    return _clustering(context, p).cluster_class_crops(
        p.class_id, p.create_students, p.assign_crops, p.include_identified, run_id
    )


def _assign_crop(context: ServiceContext, p: AssignCrop, run_id: str | None) -> BaseModel:
    return _assignment(context, p).assign_crop(p.crop_id, p.auto_commit, run_id)


def _assign_session_crops(context: ServiceContext, p: AssignSessionCrops, run_id: str | None) -> BaseModel:
    return _assignment(context, p).assign_session_crops(p.session_id, p.auto_commit, run_id)


def _assign_class_crops(context: ServiceContext, p: AssignClassCrops, run_id: str | None) -> BaseModel:
    return _assignment(context, p).assign_class_crops(p.class_id, p.auto_commit, run_id)


def _clustering(context: ServiceContext, p: ClusteringParameters) -> FaceCropClusteringService:
    return FaceCropClusteringService(
        p.embedding_model,
        p.max_clusters,
        p.similarity_threshold,
        similarity_scale=p.similarity_scale,
        context=context,
    )


def _assignment(context: ServiceContext, p: AssignmentParameters) -> FaceCropAssignmentService:
    return FaceCropAssignmentService(
        p.embedding_model,
        p.k,
        p.similarity_threshold,
        p.use_voting,
        similarity_scale=p.similarity_scale,
        context=context,
    )


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("generate_embedding", "Embed one face crop.", GenerateEmbedding, _generate_embedding),
        Operation(
            "generate_embeddings_batch", "Embed many face crops.", BatchEmbeddingParameters, _generate_embeddings_batch
        ),
        Operation(
            "cluster_session_crops",
            "Group a session's face crops into people; new people become provisional students.",
            ClusterSessionCrops,
            _cluster_session_crops,
        ),
        Operation(
            "cluster_class_crops",
            "Group a class's face crops into people over all its sessions; confirmed names are kept.",
            ClusterClassCrops,
            _cluster_class_crops,
        ),
        Operation("assign_crop", "Match one face crop with the class's identified crops.", AssignCrop, _assign_crop),
        Operation(
            "assign_session_crops",
            "Match a session's face crops with the class's identified crops.",
            AssignSessionCrops,
            _assign_session_crops,
        ),
        Operation(
            "assign_class_crops",
            "Match the face crops of all sessions of a class with its identified crops.",
            AssignClassCrops,
            _assign_class_crops,
        ),
    )
}
