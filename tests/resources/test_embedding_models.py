from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from pipelines.errors import ModelError, WeightsError
from pipelines.resources.embedding.engines import EngineSetting
from pipelines.resources.embedding.registry import BUILT_IN
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.settings import Settings


@pytest.fixture
def models(tmp_path: Path) -> EmbeddingModels:
    return EmbeddingModels(deepface_folder=str(tmp_path))


def test_a_model_embeds_inside_a_run(models: EmbeddingModels) -> None:
    @dg.asset
    def vectors(embedding_models: EmbeddingModels) -> dg.MaterializeResult:
        model = embedding_models.get("dlib")
        (vector,) = model.embed([np.full((20, 20, 3), 90, np.uint8)])
        assert isinstance(vector, np.ndarray)
        return dg.MaterializeResult(metadata={"dimension": len(vector), "version": model.version})

    run = dg.materialize([vectors], resources={"embedding_models": models})
    (materialization,) = run.asset_materializations_for_node("vectors")
    assert materialization.metadata["dimension"].value == 128
    assert materialization.metadata["version"].value == models.version("dlib")


def test_the_version_is_known_without_loading_and_is_the_loaded_models(models: EmbeddingModels) -> None:
    assert models.version("dlib") == "dlib-five_point_dlib-base1-onnx-55533b28a958"
    assert models.get("dlib").version == models.version("dlib")
    assert models.version("facenet") == "facenet-deepface-base1-onnx-missing"


@pytest.mark.parametrize("engine", ["onnx", "tensorflow"])
def test_the_versions_of_the_built_in_models_never_change(engine: EngineSetting, tmp_path: Path) -> None:
    """Another one here would make every stored vector of a school stale."""
    models = EmbeddingModels(engine=engine, deepface_folder=str(tmp_path))
    assert [models.version(name) for name in BUILT_IN] == [
        f"facenet-deepface-base1-{engine}-missing",
        f"arcface-deepface-base1-{engine}-missing",
        f"facenet512-deepface-base1-{engine}-missing",
        f"dlib-five_point_dlib-base1-{engine}-55533b28a958",
    ]


def test_missing_weights_and_unknown_names_are_told_before_any_work(models: EmbeddingModels) -> None:
    with pytest.raises(WeightsError, match="models fetch arcface"):
        models.require("arcface")
    with pytest.raises(WeightsError, match="models fetch arcface"):
        models.get("arcface")
    for ask in (models.get, models.require, models.version):
        with pytest.raises(ModelError, match="choose one of"):
            ask("vgg")


def test_settings_reach_the_models(tmp_path: Path) -> None:
    settings = Settings(deepface_home=tmp_path, engine="tensorflow", batch_size=3, allow_unverified_weights=True)
    models = EmbeddingModels.from_settings(settings)
    assert models.version("dlib").split("-")[3] == "tensorflow"
    assert models.batch_size == 3
    settings.weights_folder.mkdir(parents=True)
    (settings.weights_folder / "arcface_weights.h5").write_bytes(b"of my own")
    assert models.require("arcface").state == "mismatch"
    assert models.version("arcface").endswith("-" + str(models.require("arcface").sha256)[:12])


def test_five_points_can_be_chosen_for_a_model(tmp_path: Path) -> None:
    models = EmbeddingModels(deepface_folder=str(tmp_path), five_point_models=["arcface"])
    assert models.version("arcface").startswith("arcface-five_point_arcface-")
    assert models.version("facenet").startswith("facenet-deepface-")
