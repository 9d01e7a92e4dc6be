"""What the operations on face crops answer: the same fields from jobs, command line, HTTP and Python."""

from typing import Literal

from pydantic import BaseModel, Field

from pipelines.services.parameters import AssignmentParameters

EmbeddingStatus = Literal["success", "skipped", "error"]
BatchStatus = Literal["success", "partial", "error"]
AssignmentStatus = Literal["assigned", "no_match", "needs_review", "already_assigned", "error"]


def batch_status(errors: int, total: int) -> BatchStatus:
    """`error` where nothing worked, `partial` where something failed, else `success`."""
    if not errors:
        return "success"
    return "error" if errors == total else "partial"


_SIMILARITY = (
    "On the calibrated scale: 0.5 is the verification threshold of the model, or the one adopted for the class."
)
_COSINE_THRESHOLD = (
    "The cosine similarity that similarity_threshold stands for in this class; null where it cannot be reached."
)


class EmbeddingAnswer(BaseModel):
    """What embedding one crop did."""

    status: EmbeddingStatus
    crop_id: int
    embedding_model: str
    embedding_dimension: int
    message: str


class CropEmbedding(BaseModel):
    """One crop of a batch."""

    crop_id: int
    status: EmbeddingStatus
    reason: str | None = None


class BatchEmbeddingAnswer(BaseModel):
    """What embedding many crops did."""

    status: BatchStatus
    total: int
    success: int
    skipped: int
    errors: int
    model_name: str
    results: list[CropEmbedding]


class ClusteringAnswer(BaseModel):
    """The clusters that were found, and what was made of them."""

    status: BatchStatus
    clusters_found: int
    students_created: int
    crops_assigned: int
    cluster_sizes: dict[str, int] = Field(description="Crops of each cluster, by its label.")
    max_clusters_reached: bool = Field(
        description="max_clusters merged people who are not alike enough, or could not be met."
    )
    students_emptied: list[str] = Field(
        description="Names of the students, not provisional ones, whose faces have all become others': none was confirmed."
    )
    cosine_threshold: float | None = Field(description=_COSINE_THRESHOLD)
    errors: int = Field(description="Crops that could not be embedded and stayed out.")


class SessionClusteringAnswer(ClusteringAnswer):
    """The clusters of a session."""

    session_id: int
    session_name: str


class ClassClusteringAnswer(ClusteringAnswer):
    """The clusters of a class."""

    class_id: int
    class_name: str


class Neighbour(BaseModel):
    """An identified crop near the one in question."""

    crop_id: int
    student_id: int
    student_name: str
    similarity: float = Field(ge=0, le=1, description=_SIMILARITY)
    cosine_similarity: float = Field(ge=-1, le=1)


class AssignmentAnswer(BaseModel):
    """Who one crop shows."""

    status: AssignmentStatus
    crop_id: int
    student_id: int | None = Field(default=None, description="The student, or for needs_review the likeliest one.")
    student_name: str | None = None
    confidence: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Sum of the similarities of the student's votes, divided by the number of all votes.",
    )
    similarity: float | None = Field(default=None, ge=0, le=1, description=_SIMILARITY)
    cosine_similarity: float | None = Field(default=None, ge=-1, le=1)
    k_nearest: list[Neighbour] = []
    message: str | None = Field(default=None, description="Why it needs a review, or what went wrong.")


class BatchAssignmentAnswer(BaseModel):
    """Who the crops of a session or class show that had no student before."""

    status: BatchStatus
    total_crops: int
    assigned: int
    no_match: int
    needs_review: int
    errors: int
    parameters: AssignmentParameters
    cosine_threshold: float | None = Field(description=_COSINE_THRESHOLD)
    results: list[AssignmentAnswer]


class SessionAssignmentAnswer(BatchAssignmentAnswer):
    """Who the crops of a session show."""

    session_id: int


class ClassAssignmentAnswer(BatchAssignmentAnswer):
    """Who the crops of a class show."""

    class_id: int


class SimilarCrop(BaseModel):
    """A crop without a student near the one in question."""

    crop_id: int
    similarity: float = Field(ge=0, le=1, description=_SIMILARITY)
    cosine_similarity: float = Field(ge=-1, le=1)


class SimilarCropsAnswer(BaseModel):
    """The crops of a class that are most like one crop, the likest first."""

    crop_id: int
    embedding_model: str
    identified: list[Neighbour]
    unidentified: list[SimilarCrop]
