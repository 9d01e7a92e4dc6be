"""The Dagster resource that hands out embedding models by name."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
from pydantic import Field

from pipelines.resources.embedding.engines import EngineSetting, resolve_engine
from pipelines.resources.embedding.model import EmbeddingModel, load_model, version_string
from pipelines.resources.embedding.registry import ModelSpec, get_spec
from pipelines.resources.embedding.weights import WeightsStatus, require_weights, weights_status
from pipelines.settings import Settings, get_settings


class EmbeddingModels(dg.ConfigurableResource):
    """A factory over the registry: weights are checked first, networks are loaded when asked for, once per process."""

    engine: EngineSetting = Field(default="auto", description="What runs the networks; auto is onnx.")
    batch_size: int = Field(default=8, ge=1, le=256, description="Crops per forward pass.")
    deepface_folder: str = Field(description="DeepFace's home folder, with .deepface/weights below it.")
    allow_unverified_weights: bool = Field(default=False, description="Accept weights files that are not published.")
    five_point_models: list[str] = Field(
        default=[],
        description="Models whose crops are warped by five landmarks to the ArcFace template, not cut DeepFace's way.",
    )

    @classmethod
    def from_settings(cls, settings: Settings) -> "EmbeddingModels":
        """The resource as the process's settings have it."""
        return cls(
            engine=settings.engine,
            batch_size=settings.batch_size,
            deepface_folder=str(settings.deepface_folder),
            allow_unverified_weights=settings.allow_unverified_weights,
        )

    def get(self, name: str) -> EmbeddingModel:
        """The loaded model; raises ModelError for an unknown name, WeightsError for missing or wrong weights."""
        spec = self._spec(name)
        return load_model(spec, resolve_engine(self.engine, spec), self.batch_size, self.require(name))

    def version(self, name: str) -> str:
        """The version string that the model's vectors have, found without loading its network."""
        spec = self._spec(name)
        return version_string(spec, resolve_engine(self.engine, spec), weights_status(spec, self._settings()))

    def require(self, name: str) -> WeightsStatus:
        """Makes sure that the model can run; raises ModelError or WeightsError before any work starts."""
        return require_weights(self._spec(name), self._settings())

    def _spec(self, name: str) -> ModelSpec:
        spec = get_spec(name)
        return replace(spec, crop_policy="five_point_arcface") if name in self.five_point_models else spec

    def _settings(self) -> Settings:
        changes = {
            "deepface_home": Path(self.deepface_folder),
            "allow_unverified_weights": self.allow_unverified_weights,
        }
        return get_settings().model_copy(update=changes)
