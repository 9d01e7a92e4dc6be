"""The use cases, each once: what assets, jobs, commands and HTTP call."""

from pipelines.services.assignment import FaceCropAssignmentService
from pipelines.services.clustering import FaceCropClusteringService
from pipelines.services.embedding import EmbeddingService

__all__ = ["EmbeddingService", "FaceCropAssignmentService", "FaceCropClusteringService"]
