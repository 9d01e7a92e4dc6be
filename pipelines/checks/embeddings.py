"""The integrity of stored vectors."""

import dagster as dg

from pipelines.assets.common import model_asset
from pipelines.checks.common import check_each_session
from pipelines.database import catalog, crops
from pipelines.faces.similarity import defects
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.resources.embedding_models import EmbeddingModels


def build_embedding_check(spec: ModelSpec) -> dg.AssetChecksDefinition:
    """The blocking check of one model's `face_embeddings`."""

    @dg.asset_check(
        asset=model_asset(spec, "face_embeddings"),
        name="every_usable_crop_has_a_sound_embedding",
        description=f"Every usable crop has a vector of {spec.dimension} finite numbers and norm 1.",
        blocking=True,
    )
    def every_usable_crop_has_a_sound_embedding(
        context: dg.AssetCheckExecutionContext, database: Database, embedding_models: EmbeddingModels
    ) -> dg.AssetCheckResult:
        version = embedding_models.version(spec.name)

        def unsound(key: SessionKey) -> list[str]:
            with database.connection() as connection:
                session = catalog.find_session(connection, key)
                usable = [crop.id for crop in crops.session_crops(connection, session.id) if crop.usable]
                ids, vectors = crops.read_embeddings(connection, spec.name, version, usable, spec.dimension)
            missing = [f"crop {crop_id} has no embedding" for crop_id in sorted(set(usable) - set(ids))]
            return missing + [
                f"crop {ids[row]}: {defect} (materialize face_embeddings with force_regenerate to compute it anew)"
                for row, defect in defects(vectors, spec.dimension).items()
            ]

        return check_each_session(context, unsound, severity=dg.AssetCheckSeverity.ERROR, version=version)

    return every_usable_crop_has_a_sound_embedding
