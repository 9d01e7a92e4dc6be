"""Weights and crops for the tests of embedding models."""

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.resources.embedding.registry import get_spec
from pipelines.resources.embedding.weights import require_weights
from pipelines.settings import PROJECT_ROOT, Settings


@pytest.fixture(autouse=True)
def deepface_home_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What an engine sets DEEPFACE_HOME to does not outlive the test, and nothing is left in the real one."""
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    monkeypatch.delenv("DEEPFACE_BACKEND_ENGINE", raising=False)


@pytest.fixture(scope="session")
def make_random_weights() -> Callable[[str, Path, int], Path]:
    """`benchmarks/random_weights.py`, which is in no package."""
    path = PROJECT_ROOT / "benchmarks" / "random_weights.py"
    module_spec = importlib.util.spec_from_file_location("random_weights", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.make_random_weights


@pytest.fixture(scope="session")
def settings_for(
    tmp_path_factory: pytest.TempPathFactory, make_random_weights: Callable[[str, Path, int], Path]
) -> Callable[[str], Settings]:
    """Settings under which a model can run: dlib with its own weights, the others with random ones made once."""
    settings = Settings(deepface_home=tmp_path_factory.mktemp("deepface"), allow_unverified_weights=True)

    def prepare(name: str) -> Settings:
        spec = get_spec(name)
        if spec.weights_package is None and not (settings.weights_folder / spec.weights_file).exists():
            make_random_weights(name, settings.weights_folder, 1)
        return settings

    return prepare


@pytest.fixture(scope="session")
def chips() -> list[NDArray[np.uint8]]:
    """Nine crops of many sizes: parts of scikit-image's astronaut, noise, and one all black."""
    from skimage.data import astronaut

    photo = astronaut()
    parts = [photo[y : y + h, x : x + w] for x, y, w, h in [(170, 66, 108, 122), (0, 0, 150, 150), (300, 200, 40, 90)]]
    parts += [photo[100:400, 250:330], photo[380:512, 0:512], photo[90:110, 200:224]]
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, shape, np.uint8) for shape in [(160, 160, 3), (33, 71, 3)]]
    return [*parts, *noise, np.zeros((64, 64, 3), np.uint8)]


@pytest.fixture(scope="session")
def represented(
    settings_for: Callable[[str], Settings], chips: list[NDArray[np.uint8]]
) -> Callable[[str], list[list[float]]]:
    """The vectors that `DeepFace.represent` gives for the crops, one by one, with the weights of `settings_for`."""

    @lru_cache
    def run(name: str) -> list[list[float]]:
        spec, settings = get_spec(name), settings_for(name)
        require_weights(spec, settings)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DEEPFACE_HOME", str(settings.deepface_folder))
            from deepface import DeepFace
            from deepface.modules import modeling

            # DeepFace keeps every model it built for the rest of the process, whatever its weights.
            patch.setattr(modeling, "cached_models", {"facial_recognition": {}}, raising=False)
            results = [
                DeepFace.represent(
                    chip[..., ::-1], model_name=spec.deepface_name, detector_backend="skip", enforce_detection=False
                )
                for chip in chips
            ]
        return [face["embedding"] for (face,) in results]

    return run
