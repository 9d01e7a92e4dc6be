import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.errors import ModelError, WeightsError
from pipelines.resources.embedding import engines
from pipelines.resources.embedding.dlib_network import dlib_onnx
from pipelines.resources.embedding.engines import (
    EngineName,
    EngineSetting,
    convert_to_int8,
    convert_to_onnx,
    load_engine,
    resolve_engine,
)
from pipelines.resources.embedding.model import EmbeddingModel
from pipelines.resources.embedding.registry import REGISTRY, get_spec
from pipelines.resources.embedding.weights import require_weights
from pipelines.settings import Settings

keras = [pytest.param(name, marks=pytest.mark.slow) for name in ("facenet", "arcface", "facenet512")]


def loaded(name: str, engine: EngineName, settings: Settings, batch_size: int = 4) -> EmbeddingModel:
    """The model loaded anew, whatever this process has loaded before."""
    spec = get_spec(name)
    return EmbeddingModel(spec, "", load_engine(engine, spec, require_weights(spec, settings), batch_size), batch_size)


def vectors(model: EmbeddingModel, chips: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """(n, dimension) vectors of crops that all have one."""
    return np.array(model.embed(chips), np.float32)


def cosines(unit: NDArray[np.float32], other: Sequence[list[float]] | NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each row of `unit`, of norm 1, and the same row of `other`."""
    return np.sum(unit * np.array(other), axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("engine", ["onnx", "tensorflow"])
@pytest.mark.parametrize("name", ["dlib", *keras])
def test_every_model_equals_deepface_on_the_same_crop(
    name: str,
    engine: EngineName,
    settings_for: Callable[[str], Settings],
    chips: list[NDArray[np.uint8]],
    represented: Callable[[str], list[list[float]]],
) -> None:
    model = loaded(name, engine, settings_for(name))
    ours, reference = vectors(model, chips), represented(name)
    assert ours.shape == (len(chips), get_spec(name).dimension)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    assert cosines(ours, reference).min() >= 0.99999
    # What the comparison is worth: another crop or swapped colours would not pass it.
    assert cosines(np.roll(ours, 1, axis=0), reference).max() < 0.9999
    swapped = vectors(model, [chip[..., ::-1] for chip in chips[:6]])
    assert cosines(swapped, reference[:6]).max() < 0.9999


@pytest.mark.parametrize("name", ["dlib", keras[0]])
def test_onnx_gives_the_same_bits_for_every_batch_size_and_order(
    name: str, settings_for: Callable[[str], Settings], chips: list[NDArray[np.uint8]]
) -> None:
    settings = settings_for(name)
    one_by_one = vectors(loaded(name, "onnx", settings, batch_size=1), chips)
    for batch_size in (2, 3, 9):
        model = loaded(name, "onnx", settings, batch_size)
        np.testing.assert_array_equal(vectors(model, chips), one_by_one)
        np.testing.assert_array_equal(vectors(model, chips[::-1])[::-1], one_by_one)


def test_dlibs_network_equals_dlib_to_a_millionth(
    settings_for: Callable[[str], Settings], chips: list[NDArray[np.uint8]]
) -> None:
    spec = get_spec("dlib")
    weights = require_weights(spec, settings_for("dlib"))
    noise = np.random.default_rng(0).integers(0, 256, (3, 150, 150, 3), np.uint8)
    images = np.stack([spec.preprocessing.image(chip, spec.input_size) for chip in [*chips[:8], *noise]])
    ours, dlib = load_engine("onnx", spec, weights, 3)(images), load_engine("tensorflow", spec, weights, 3)(images)
    np.testing.assert_allclose(ours, dlib, rtol=0, atol=1e-6)


def test_a_file_that_is_not_dlibs_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.dat").write_bytes(b"\x01\x02" * 1000)
    with pytest.raises(WeightsError, match=r"weights\.dat does not hold"):
        dlib_onnx(tmp_path / "weights.dat")


def test_dlib_has_no_onnx_file_to_convert(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'dlib' needs no ONNX file"):
        convert_to_onnx("dlib", Settings(deepface_home=tmp_path))


def test_a_conversion_that_does_not_agree_is_refused_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, spec = Settings(deepface_home=tmp_path, allow_unverified_weights=True), get_spec("facenet")
    settings.weights_folder.mkdir(parents=True)
    (settings.weights_folder / spec.weights_file).write_bytes(b"of the small network below")
    import tf_keras

    network = tf_keras.Sequential(
        [
            tf_keras.layers.InputLayer((160, 160, 3)),
            tf_keras.layers.Conv2D(8, 3, strides=16),
            tf_keras.layers.Flatten(),
            tf_keras.layers.Dense(spec.dimension),
        ]
    )
    functional = tf_keras.Model(network.inputs, network.outputs)
    monkeypatch.setattr(engines, "_deepface_client", lambda *_: SimpleNamespace(model=functional))
    file = convert_to_onnx("facenet", settings)
    assert file.is_file()
    file.unlink()

    run = engines._run

    def a_little_off(*arguments: Any) -> engines.Engine:
        engine = run(*arguments)
        return lambda batch: engine(batch) + np.float32(0.01)

    monkeypatch.setattr(engines, "_run", a_little_off)
    with pytest.raises(ModelError, match=r"does not agree .*cosine 0\.9.*ATTENDANSEE_ENGINE=tensorflow"):
        convert_to_onnx("facenet", settings)
    assert [path.suffix for path in settings.weights_folder.iterdir()] == [".h5"]


def test_8_bits_give_other_vectors_of_the_same_faces(tmp_path: Path, chips: list[NDArray[np.uint8]]) -> None:
    settings, spec = Settings(deepface_home=tmp_path), get_spec("dlib")
    path = convert_to_int8("dlib", settings)
    assert path.parent == settings.weights_folder
    assert path.stat().st_size < require_weights(spec, settings).path.stat().st_size / 3
    made = path.stat().st_mtime_ns
    model = loaded("dlib", "onnx-int8", settings)
    assert path.stat().st_mtime_ns == made, "a file that is right is kept"
    cosine = cosines(vectors(model, chips[:6]), vectors(loaded("dlib", "onnx", settings), chips[:6]))
    assert 0.97 < cosine.min() < cosine.max() < 0.99999

    path.write_bytes(path.read_bytes()[:-1000])
    np.testing.assert_array_equal(vectors(loaded("dlib", "onnx-int8", settings), chips), vectors(model, chips))
    assert path.stat().st_mtime_ns != made


def test_a_network_that_has_no_8_bits_or_is_ruined_by_them_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_LEAST_INT8_COSINE", 0.99999)
    with pytest.raises(ModelError, match=r"8 bits ruin the model 'dlib' .*ATTENDANSEE_ENGINE=onnx"):
        convert_to_int8("dlib", Settings(deepface_home=tmp_path))

    def fail(*_: object) -> bytes:
        raise ValueError("Failed to find proper ai.onnx domain")

    monkeypatch.setattr(engines, "quantize", fail)
    with pytest.raises(ModelError, match=r"cannot be made to run in 8 bits \(Failed to find.*ATTENDANSEE_ENGINE=onnx"):
        convert_to_int8("dlib", Settings(deepface_home=tmp_path))
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.mark.slow
def test_a_converted_file_that_is_cut_off_or_of_other_weights_is_made_anew(
    tmp_path: Path, make_random_weights: Callable[[str, Path, int], Path], chips: list[NDArray[np.uint8]]
) -> None:
    settings = Settings(deepface_home=tmp_path, allow_unverified_weights=True)
    make_random_weights("facenet", settings.weights_folder, 2)
    file = convert_to_onnx("facenet", settings)
    converted = file.stat()
    first = vectors(loaded("facenet", "onnx", settings), chips)
    assert file.stat().st_mtime_ns == converted.st_mtime_ns, "a file that is right is kept"

    file.write_bytes(file.read_bytes()[:-1000])
    np.testing.assert_array_equal(vectors(loaded("facenet", "onnx", settings), chips), first)
    assert file.stat().st_size == converted.st_size

    make_random_weights("facenet", settings.weights_folder, 3)
    ours = vectors(loaded("facenet", "onnx", settings), chips)
    assert cosines(ours, first).max() < 0.999
    assert cosines(ours, vectors(loaded("facenet", "tensorflow", settings), chips)).min() >= 0.99999


@pytest.mark.slow
def test_deepfaces_onnx_client_reads_the_converted_file(
    settings_for: Callable[[str], Settings], chips: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for("facenet")
    convert_to_onnx("facenet", settings)
    monkeypatch.setenv("DEEPFACE_HOME", str(settings.deepface_folder))
    from deepface.models.facial_recognition.onnx.Facenet import FaceNet128dClient
    from deepface.modules.preprocessing import resize_image

    client = FaceNet128dClient()
    reference = [client.forward(resize_image(chip[..., ::-1], (160, 160))) for chip in chips]
    assert cosines(vectors(loaded("facenet", "onnx", settings), chips), reference).min() >= 0.99999


def test_auto_is_onnx_whatever_files_are_there_and_never_8_bits() -> None:
    assert {resolve_engine("auto", spec) for spec in REGISTRY.values()} == {"onnx"}
    chosen: list[EngineName] = ["onnx", "onnx-int8", "tensorflow"]
    assert [resolve_engine(engine, get_spec("facenet")) for engine in chosen] == chosen


def test_auto_is_tensorflow_where_onnx_runtime_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    engines._installed_engine.cache_clear()
    try:
        assert {resolve_engine("auto", get_spec("facenet")) for _ in range(3)} == {"tensorflow"}
    finally:
        engines._installed_engine.cache_clear()
    assert [record.message for record in caplog.records if "ONNX Runtime is not installed" in record.message][1:] == []
    assert "ONNX Runtime is not installed" in caplog.text


def test_a_model_that_came_as_an_onnx_file_runs_on_onnx_runtime_in_any_case() -> None:
    spec = replace(get_spec("facenet"), framework="onnx", deepface_name=None)
    settings: list[EngineSetting] = ["auto", "onnx", "tensorflow", "onnx-int8"]
    assert [resolve_engine(setting, spec) for setting in settings] == ["onnx", "onnx", "onnx", "onnx-int8"]


def test_embedding_with_onnx_brings_no_tensorflow(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np\n"
        "from pipelines.resources.embedding_models import EmbeddingModels\n"
        "heavy = {'tensorflow', 'deepface', 'cv2', 'dlib', 'onnx', 'onnxruntime'}\n"
        "assert not heavy & set(sys.modules)\n"
        f"models = EmbeddingModels(deepface_folder={str(tmp_path)!r})\n"
        "models.version('dlib')\n"
        "assert not heavy & set(sys.modules)\n"
        "print(models.get('dlib').embed([np.zeros((9, 9, 3), np.uint8)])[0].shape)\n"
        "assert not {'tensorflow', 'deepface', 'dlib'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "(128,)"), done.stderr
