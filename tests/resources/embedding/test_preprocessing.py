from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.faces.alignment import letterbox
from pipelines.resources.embedding.definition import ModelDefinition
from pipelines.resources.embedding.made_crops import made_crops
from pipelines.resources.embedding.preprocessing import DEEPFACE, Normalization, Preprocessing

# Columns of red, green and blue.
CHIP = np.array([[[0, 127, 255], [51, 0, 128]], [[255, 255, 0], [1, 2, 3]]], np.uint8)


@pytest.mark.parametrize(
    ("normalization", "black", "white"),
    [("unit", 0, 1), ("symmetric", -1, 1), ("symmetric128", -127.5 / 128, 127.5 / 128), ("raw", 0, 255)],
)
def test_each_normalization_has_its_range(normalization: Normalization, black: float, white: float) -> None:
    image = Preprocessing("", "RGB", "NHWC", normalization).image(CHIP, 2)
    expected = black + (white - black) * CHIP.astype(np.float64) / 255
    np.testing.assert_allclose(image, expected, rtol=1e-6, atol=1e-6)
    assert image.dtype == np.float32
    # Not taken for values between 0 and 1, as DeepFace takes it.
    night = Preprocessing("", "RGB", "NHWC", normalization).image(np.ones((2, 2, 3), np.uint8), 2)
    if normalization != "unit":
        np.testing.assert_allclose(night, black + (white - black) / 255, rtol=1e-5)


@given(st.sampled_from(["RGB", "BGR"]), st.sampled_from(["NCHW", "NHWC"]), st.integers(1, 40), st.integers(1, 40))
def test_colours_and_places_are_where_the_network_wants_them(
    channels: str, layout: str, height: int, width: int
) -> None:
    chip = np.random.default_rng(height * 41 + width).integers(0, 256, (height, width, 3), np.uint8)
    image = Preprocessing("", channels, layout, "raw").image(chip, 32)  # type: ignore[arg-type]
    assert image.shape == ((3, 32, 32) if layout == "NCHW" else (32, 32, 3))
    if layout == "NCHW":
        image = image.transpose(1, 2, 0)
    if channels == "BGR":
        image = image[..., ::-1]
    np.testing.assert_allclose(image / 255, letterbox(chip, 32) if chip.max() > 1 else image / 255, atol=1e-6)


def test_deepfaces_is_its_own(chips: list[NDArray[np.uint8]]) -> None:
    for chip in chips:
        np.testing.assert_array_equal(DEEPFACE.image(chip, 160), letterbox(chip, 160)[..., ::-1])


def test_a_definitions_version_names_all_that_changes_a_vector() -> None:
    base = {
        "file": "m.onnx",
        "sha256": "0" * 64,
        "dimension": 512,
        "input_size": 112,
        "channels": "RGB",
        "layout": "NCHW",
        "normalization": "symmetric",
        "crop": "five_point_arcface",
        "threshold": 0.6,
    }
    changes = [{}, {"input_size": 128}, {"channels": "BGR"}, {"output": "vector"}, {"output": "a/b"}]
    changes += [{"normalization": name} for name in get_args(Normalization) if name != "symmetric"]
    versions = [ModelDefinition.model_validate({**base, **change}).preprocessing.version for change in changes]
    assert versions[0] == "rgb_nchw_symmetric_112_1"
    assert len(set(versions)) == len(changes)
    assert not any(character in version for version in versions for character in "- /")
    # A threshold that somebody corrects makes no vector stale.
    assert ModelDefinition.model_validate({**base, "threshold": 0.5}).preprocessing.version == versions[0]


def test_made_crops_are_the_same_every_time_and_look_like_photos() -> None:
    crops = made_crops(5, 64, seed=3)
    assert (crops.shape, crops.dtype) == ((5, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(crops, made_crops(5, 64, seed=3))
    assert (crops != made_crops(5, 64, seed=4)).mean() > 0.9
    for crop in crops:
        # Neighbours are alike, as in photos and not in noise, and so are the colours of one place.
        assert np.corrcoef(crop[:, 1:].ravel(), crop[:, :-1].ravel())[0, 1] > 0.5
        assert np.corrcoef(crop[..., 0].ravel(), crop[..., 1].ravel())[0, 1] > 0.5
