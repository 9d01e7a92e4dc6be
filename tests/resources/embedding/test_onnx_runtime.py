from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from pipelines.resources.embedding import onnx_runtime
from pipelines.resources.embedding.onnx_graph import GraphBuilder
from pipelines.resources.embedding.onnx_runtime import choose_providers, marked_session, onnx_engine, onnx_session

CPU = "CPUExecutionProvider"


def mean_colours(marks: dict[str, str] | None = None) -> bytes:
    """A network whose vector is the mean of each colour."""
    graph = GraphBuilder()
    mean = graph.add("ReduceMean", ["images"], axes=[1, 2], keepdims=0)
    return graph.model(mean, 4, 3, marks or {}).SerializeToString()


IMAGES = np.random.default_rng(0).random((5, 4, 4, 3), np.float32)


@pytest.mark.parametrize(
    ("available", "chosen"),
    [
        ([CPU], [CPU]),
        (["AzureExecutionProvider", CPU], [CPU]),
        (["TensorrtExecutionProvider", "CUDAExecutionProvider", CPU], ["CUDAExecutionProvider", CPU]),
        (["MIGraphXExecutionProvider", "ROCMExecutionProvider", CPU], ["ROCMExecutionProvider", CPU]),
        (["DmlExecutionProvider", CPU], ["DmlExecutionProvider", CPU]),
        (["CoreMLExecutionProvider", CPU], [CPU]),
        (["OpenVINOExecutionProvider", CPU], [CPU]),
        ([], [CPU]),
    ],
)
def test_a_gpu_that_computes_in_float32_goes_before_the_cpu(available: list[str], chosen: list[str]) -> None:
    assert choose_providers(available) == chosen


def test_tensor_float_32_is_off() -> None:
    assert onnx_runtime._GPU_OPTIONS["CUDAExecutionProvider"] == {"use_tf32": "0"}


def test_a_gpu_that_is_not_there_is_told_and_the_cpu_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    engine = onnx_engine(onnx_session(mean_colours()))
    np.testing.assert_allclose(engine(IMAGES), IMAGES.mean(axis=(1, 2)), rtol=1e-5)
    assert "The GPU (CUDAExecutionProvider) is not used, but the CPU" in caplog.text


def test_a_gpu_whose_driver_fails_is_told_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create = onnx_runtime._session

    def fail_on_a_gpu(network: Path | bytes, providers: list[str]) -> Any:
        if providers != [CPU]:
            raise RuntimeError("CUDA failure 35:\n driver version is insufficient")
        return create(network, providers)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    monkeypatch.setattr(onnx_runtime, "_session", fail_on_a_gpu)
    np.testing.assert_allclose(onnx_engine(onnx_session(mean_colours()))(IMAGES), IMAGES.mean(axis=(1, 2)), rtol=1e-5)
    assert "CUDA failure 35: driver version is insufficient" in caplog.text


def test_without_a_gpu_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert onnx_session(mean_colours()).get_providers() == [CPU]
    assert not caplog.records


def test_one_by_one_gives_the_same_as_all_at_once() -> None:
    session = onnx_session(mean_colours())
    np.testing.assert_allclose(onnx_engine(session, one_by_one=True)(IMAGES), onnx_engine(session)(IMAGES), rtol=1e-6)


def test_only_a_file_with_our_marks_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "made.onnx"
    assert marked_session(path, {}) is None
    path.write_bytes(mean_colours({"weights_sha256": "a", "other": "b"}))
    assert marked_session(path, {"weights_sha256": "a"}) is not None
    assert marked_session(path, {"weights_sha256": "b"}) is None
    assert marked_session(path, {"weights_sha256": "a", "int8_recipe": "1"}) is None
    path.write_bytes(path.read_bytes()[:-10])
    assert marked_session(path, {"weights_sha256": "a"}) is None
