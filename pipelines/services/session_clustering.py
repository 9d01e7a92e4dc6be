"""Group a session's faces into people, before anybody asks who they are."""

from dataclasses import dataclass
from typing import Literal

import dagster as dg
import numpy as np
from pydantic import Field

from pipelines.database import catalog, clusters, crops, decisions
from pipelines.database.clusters import Scope
from pipelines.faces.clustering import FREE, agglomerative_clusters, dbscan_clusters
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import get_spec


class ClusteringConfig(dg.Config):
    """How a session's usable crops are clustered."""

    algorithm: Literal["agglomerative", "dbscan"] = Field(
        default="agglomerative",
        description="agglomerative (average linkage) or dbscan, which leaves lone faces as noise.",
    )
    distance_threshold: float | None = Field(
        default=None,
        gt=0,
        le=2,
        description="Cosine distance up to which faces are one person; unset: the model's own.",
    )
    max_clusters: int | None = Field(
        default=None,
        ge=1,
        description="Bound on the number of clusters; it merges people when it bites, at last even faces of one photo.",
    )


@dataclass(frozen=True)
class ClusteringReport:
    """The clusters of a session."""

    crops: int
    clusters: int
    noise: int
    largest: int
    max_clusters_reached: bool
    changed: bool


@dataclass(frozen=True)
class SessionClusteringService:
    """Clusters the usable crops of a session by one model's vectors."""

    database: Database
    model_name: str
    version: str

    def cluster_session(self, key: SessionKey, config: ClusteringConfig) -> ClusteringReport:
        """Cluster the session's usable, embedded crops.

        What a person has said to be no face takes no part. Agglomerative: crops of one photo share no cluster, unless
        max_clusters leaves no other way; crops confirmed as one student share one, which takes in no crop that was said
        not to show them. DBSCAN knows no such constraints.
        """
        spec = get_spec(self.model_name)
        threshold = config.distance_threshold or spec.clustering_distance
        with self.database.connection() as connection:
            session = catalog.find_session(connection, key)
            photo_of = {c.id: c.image_id for c in crops.session_crops(connection, session.id) if c.usable}
            for crop_id in decisions.read_not_faces(connection, list(photo_of)):
                del photo_of[crop_id]
            ids, vectors = crops.read_embeddings(connection, spec.name, self.version, photo_of, spec.dimension)
            student_of = decisions.read_confirmed(connection, ids)
            index = {crop_id: i for i, crop_id in enumerate(ids)}
            rejected = [(index[crop_id], student) for crop_id, student in decisions.read_rejected(connection, ids)]
        photos = np.array([photo_of[crop_id] for crop_id in ids], dtype=np.int64)
        known = np.array([student_of.get(crop_id, FREE) for crop_id in ids], dtype=np.int64)
        # No transaction is open meanwhile: thousands of crops take seconds.
        if config.algorithm == "dbscan":
            clustering = dbscan_clusters(vectors, threshold)
        else:
            clustering = agglomerative_clusters(
                vectors, threshold, photos, known, max_clusters=config.max_clusters, rejected=rejected
            )
        labels = {crop_id: int(label) for crop_id, label in zip(ids, clustering.labels, strict=True) if label >= 0}
        with self.database.connection() as connection:
            changed = clusters.write_clusters(connection, Scope(session.class_id, session.id), spec.name, labels)
        sizes = np.bincount(list(labels.values())) if labels else np.zeros(0, dtype=int)
        return ClusteringReport(
            crops=len(ids),
            clusters=len(sizes),
            noise=len(ids) - len(labels),
            largest=int(sizes.max(initial=0)),
            max_clusters_reached=clustering.max_clusters_reached,
            changed=changed,
        )
