from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.faces.alignment import ARCFACE_112, deepface_chip, five_point_chip
from pipelines.faces.face import DetectedFace
from pipelines.resources.embedding.engines import EngineName
from pipelines.resources.embedding.model import EmbeddingError, EmbeddingModel, load_model, version_string
from pipelines.resources.embedding.preprocessing import DEEPFACE, CropPolicy, Preprocessing
from pipelines.resources.embedding.registry import REGISTRY, get_spec
from pipelines.resources.embedding.weights import WeightsStatus, require_weights
from pipelines.settings import Settings


def means_of_channels(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """A network that is easy to check: the mean of each channel; black has no direction, pure blue gives NaN."""
    means = batch.mean(axis=(1, 2))
    means[(means[:, 0] > 0) & (means[:, 1:].max(axis=1) == 0)] = np.nan
    return means


def simple_model(batch_size: int = 4) -> EmbeddingModel:
    return EmbeddingModel(get_spec("facenet"), "simple", means_of_channels, batch_size)


def solid(red: int, green: int, blue: int) -> NDArray[np.uint8]:
    return np.full((5, 7, 3), (red, green, blue), np.uint8)


BAD: dict[str, Any] = {
    "grey": np.zeros((5, 5), np.uint8),
    "alpha": np.zeros((5, 5, 4), np.uint8),
    "float": np.zeros((5, 5, 3), np.float32),
    "empty": np.zeros((0, 5, 3), np.uint8),
    "no array": "photo.jpg",
    "black": solid(0, 0, 0),
    "not finite": solid(0, 0, 200),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_crop_gets_its_reason_and_the_rest_goes_on(what: str) -> None:
    good = solid(200, 100, 50)
    first, failed, last = simple_model().embed([good, BAD[what], good])
    assert isinstance(failed, EmbeddingError)
    assert "crop" in str(failed)
    for vector in (first, last):
        assert isinstance(vector, np.ndarray)
        np.testing.assert_allclose(vector, np.array([50, 100, 200]) / np.linalg.norm([50, 100, 200]), rtol=1e-5)
        assert vector.dtype == np.float32


def test_bad_crops_do_not_disturb_a_real_network(
    settings_for: Callable[[str], Settings], chips: list[NDArray[np.uint8]]
) -> None:
    spec = get_spec("dlib")
    model = load_model(spec, "onnx", 4, require_weights(spec, settings_for("dlib")))
    results = model.embed([BAD["grey"], chips[0], BAD["empty"], chips[1], BAD["no array"], chips[2]])
    assert [isinstance(result, EmbeddingError) for result in results] == [True, False] * 3
    np.testing.assert_array_equal(results[1::2], model.embed(chips[:3]))


def test_nothing_in_nothing_out() -> None:
    assert simple_model().embed([]) == []
    assert [type(result) for result in simple_model().embed([BAD["grey"]])] == [EmbeddingError]


@given(
    st.lists(
        st.one_of(
            st.tuples(*[st.integers(0, 255)] * 3).map(lambda rgb: solid(*rgb)), st.sampled_from(list(BAD.values()))
        )
    ),
    st.integers(1, 5),
)
def test_every_crop_is_answered_for_itself_whatever_the_batches(
    crops: list[NDArray[np.uint8]], batch_size: int
) -> None:
    alone = [simple_model().embed([crop])[0] for crop in crops]
    together = simple_model(batch_size).embed(crops)
    assert len(together) == len(crops)
    for one, other in zip(alone, together, strict=True):
        if isinstance(one, EmbeddingError):
            assert str(one) == str(other)
        else:
            assert isinstance(other, np.ndarray)
            np.testing.assert_array_equal(one, other)
            assert abs(np.linalg.norm(other) - 1) < 1e-6


LANDMARKS = np.array([[40, 40], [70, 40], [55, 55], [44, 70], [66, 70]], np.float32)


def cut(name: str, photo: NDArray[np.uint8], policy: CropPolicy | None = None) -> NDArray[np.uint8]:
    spec = get_spec(name) if policy is None else replace(get_spec(name), crop_policy=policy)
    return EmbeddingModel(spec, "", means_of_channels, 1).cut(photo, DetectedFace((30, 20, 50, 60), LANDMARKS, 1.0))


def test_each_crop_policy_cuts_its_way(chips: list[NDArray[np.uint8]]) -> None:
    photo = chips[6]
    np.testing.assert_array_equal(cut("facenet", photo), deepface_chip(photo, (30, 20, 50, 60), LANDMARKS))
    np.testing.assert_array_equal(
        cut("arcface", photo, "five_point_arcface"), five_point_chip(photo, LANDMARKS, ARCFACE_112, 112)
    )
    assert {name: cut(name, photo).shape for name in REGISTRY} == {
        "facenet": (60, 50, 3),
        "arcface": (60, 50, 3),
        "facenet512": (60, 50, 3),
        "dlib": (150, 150, 3),
    }


def test_the_arcface_template_grows_with_the_chip() -> None:
    """A dot on the nose lies at the template's nose, at FaceNet's size too."""
    photo = np.zeros((120, 120, 3), np.uint8)
    landmarks = ARCFACE_112 + 3
    x, y = np.rint(landmarks[2]).astype(int)
    photo[y - 1 : y + 2, x - 1 : x + 2] = 255
    spec = replace(get_spec("facenet"), crop_policy="five_point_arcface")
    face = DetectedFace((0, 0, 112, 112), landmarks, 1.0)
    chip = EmbeddingModel(spec, "", means_of_channels, 1).cut(photo, face)
    assert chip.shape == (160, 160, 3)
    rows, columns = np.nonzero(chip[..., 0] > 127)
    np.testing.assert_allclose((columns.mean(), rows.mean()), ARCFACE_112[2] * 160 / 112, atol=1.5)


def test_a_face_without_extent_is_an_error_of_that_face() -> None:
    face = DetectedFace((0, 0, 0, 0), np.zeros((5, 2), np.float32), 1.0)
    with pytest.raises(EmbeddingError, match="detect the face again"):
        simple_model().cut(np.zeros((9, 9, 3), np.uint8), face)


def test_versions_differ_by_all_that_changes_a_vector(tmp_path: Path) -> None:
    def version(
        policy: CropPolicy = "deepface",
        engine: EngineName = "onnx",
        sha256: str = "a" * 64,
        preprocessing: Preprocessing = DEEPFACE,
    ) -> str:
        spec = replace(get_spec("facenet"), crop_policy=policy, preprocessing=preprocessing)
        return version_string(spec, engine, WeightsStatus("facenet", tmp_path, sha256, "verified"))

    versions = [
        version(),
        version("five_point_arcface"),
        version(engine="tensorflow"),
        version(engine="onnx-int8"),
        version(sha256="b" * 64),
        version(preprocessing=Preprocessing("rgb_nhwc_raw_160_1", "RGB", "NHWC", "raw")),
    ]
    assert len(set(versions)) == 6
    assert {version.count("-") for version in versions} == {4}
    assert not any(character.isspace() for character in "".join(versions))


def test_a_model_is_loaded_once(settings_for: Callable[[str], Settings]) -> None:
    spec = get_spec("dlib")
    weights = require_weights(spec, settings_for("dlib"))
    assert load_model(spec, "onnx", 4, weights) is load_model(spec, "onnx", 4, weights)
