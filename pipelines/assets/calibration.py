"""Thresholds that a class's confirmed identities give, for a person to adopt."""

import base64

import dagster as dg

from pipelines.assets.common import for_each_partition, lineage_asset, model_asset
from pipelines.assets.score_plot import score_plot
from pipelines.partitions import classes
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.services.calibration import CalibrationConfig, calibrate_class


def build_calibration(spec: ModelSpec) -> dg.AssetsDefinition:
    """`<model>/calibration`."""

    @lineage_asset(
        spec,
        "calibration",
        # For lineage only, as with the class's register: people start it.
        deps=[dg.AssetDep(model_asset(spec, "face_embeddings"), partition_mapping=dg.AllPartitionMapping())],
        partitions_def=classes,
        kinds={"python", "numpy", "postgres"},
        description="The operating threshold and the similarity scale that the class's confirmed identities give; used "
        "once a person adopts them.",
    )
    def calibration(
        context: dg.AssetExecutionContext,
        config: CalibrationConfig,
        database: Database,
        embedding_models: EmbeddingModels,
    ) -> dg.MaterializeResult:
        version = embedding_models.version(spec.name)

        def calibrate(class_name: str) -> dict[str, object]:
            report, searches = calibrate_class(
                database, class_name, spec.name, version, config.fpir, context.run.run_id
            )
            metadata = report.model_dump(mode="json", exclude_none=True)
            if len(searches.genuine) + len(searches.impostor):
                threshold = None if report.operating_distance is None else 1 - report.operating_distance
                drawing = score_plot(searches.genuine, searches.impostor, threshold).encode()
                image = f"data:image/svg+xml;base64,{base64.b64encode(drawing).decode()}"
                metadata["distributions"] = dg.MetadataValue.md(f"![genuine and impostor similarities]({image})")
            return metadata

        return for_each_partition(context, calibrate)

    return calibration
