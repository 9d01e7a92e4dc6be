"""The parameters of the operations on face crops: one class each for jobs, command line, HTTP and Python."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import dagster as dg
from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from pipelines.errors import ParameterError
from pipelines.resources.embedding.registry import REGISTRY

SimilarityScale = Literal["calibrated", "cosine"]

MAX_ID = 2**63 - 1  # of a bigint: a larger number is no id, and PostgreSQL says so in an error of its own
Id = Annotated[int, Field(ge=1, le=MAX_ID)]


def _check_model(name: str) -> str:
    if name not in REGISTRY:
        raise ValueError(f"choose one of {', '.join(REGISTRY)}")
    return name


ModelName = Annotated[str, AfterValidator(_check_model), Field(json_schema_extra={"enum": list(REGISTRY)})]


class Parameters(dg.Config):
    """What all parameter classes share: no unknown names, and no "5" for 5."""

    model_config = ConfigDict(strict=True, extra="forbid")


P = TypeVar("P", bound=Parameters)


class EmbeddingParameters(Parameters):
    """How a crop is embedded."""

    model_name: ModelName = Field(default="facenet", description="Embedding model.")
    force_regenerate: bool = Field(default=False, description="Compute vectors again that are stored already.")


class BatchEmbeddingParameters(EmbeddingParameters):
    """Which crops are embedded, and how."""

    face_crop_ids: list[Id] = Field(min_length=1, max_length=100_000, description="Ids of the crops to embed.")


class _IdentityParameters(Parameters):
    embedding_model: ModelName = Field(default="facenet", description="Embedding model to compare faces with.")
    similarity_scale: SimilarityScale = Field(
        default="calibrated",
        description="calibrated: 0.5 is the model's own verification threshold, so that a number means the same for "
        "every model, and equal vectors have 0.99; cosine: the plain cosine similarity.",
    )


class ClusteringParameters(_IdentityParameters):
    """How crops are grouped into people."""

    max_clusters: int = Field(
        default=50,
        ge=1,
        le=200,
        description="Bound on the number of clusters, 1 to 200; where it bites, people are merged, at last even two faces of one "
        "photo, of which one then needs a review. Only confirmed students stay apart: there may be as many clusters as "
        "there are of them.",
    )
    similarity_threshold: float = Field(
        default=0.5, ge=0, le=1, description="Mean similarity from which on faces are one person, 0 to 1."
    )
    create_students: bool = Field(default=True, description="Make a provisional student for each new person.")
    assign_crops: bool = Field(default=True, description="Assign the crops of a cluster to its student.")


class ClassClusteringParameters(ClusteringParameters):
    """How the crops of a whole class are grouped into people."""

    include_identified: bool = Field(
        default=False, description="Cluster crops that have a student too; confirmed names are kept in any case."
    )


class AssignmentParameters(_IdentityParameters):
    """How crops are matched with the class's identified crops."""

    k: int = Field(default=5, ge=1, le=20, description="Nearest identified crops that may vote, 1 to 20.")
    similarity_threshold: float = Field(
        default=0.6, ge=0, le=1, description="Similarity from which on an identified crop may vote, 0 to 1."
    )
    use_voting: bool = Field(
        default=True,
        description="Majority of the k nearest, in need of a review where another student's best match is as good; "
        "false: the best match only.",
    )
    auto_commit: bool = Field(
        default=True, description="Write the result; false: only suggest it (vectors that were missing are kept)."
    )


def checked(kind: type[P], **values: Any) -> P:
    """The parameters, validated; raises ParameterError naming each wrong one, its value and its range."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise ParameterError(" ".join(explain(kind, error))) from error


def explain(kind: type[Parameters], error: ValidationError) -> list[str]:
    """One sentence for each wrong parameter: its name, what is wrong, and the range where it has one."""
    return [
        problem_sentence(f"The parameter {'.'.join(map(str, place))}", kind.model_fields.get(str(place[0])), problem)
        for problem in error.errors()
        for place in [problem["loc"]]
    ]


def problem_sentence(name: str, field: FieldInfo | None, problem: Mapping[str, Any]) -> str:
    """One of pydantic's findings about `field` in words; the value that was given is left out."""
    # dg.Config makes None of a field that is not given.
    missing = problem.get("input") is None and field is not None and field.is_required()
    reason = "it is missing" if missing else problem["msg"]
    limits = list(field.metadata) if field else []
    if field and isinstance(problem["loc"][-1], int):
        # What is wrong is one of a list, whose limits its type carries.
        limits = [limit for kind in get_args(field.annotation) for limit in _limits(kind)]
    bounds = {
        end: value for limit in limits for end in ("ge", "le") if (value := getattr(limit, end, None)) is not None
    }
    allowed = f" (allowed: {bounds['ge']} to {bounds['le']})" if len(bounds) == 2 else ""
    return f"{name} cannot be used: {reason}{allowed}."


def _limits(kind: Any) -> list[Any]:
    """The limits of an annotated type such as `Id`."""
    return [limit for part in getattr(kind, "__metadata__", ()) for limit in getattr(part, "metadata", ())]
