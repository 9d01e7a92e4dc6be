"""The drawing of both distributions: what it holds, and that it stays small."""

from xml.etree import ElementTree

import numpy as np
import pytest

from pipelines.assets.score_plot import score_plot

SVG = "{http://www.w3.org/2000/svg}"


def drawn(genuine: list[float], impostor: list[float], threshold: float | None = None) -> ElementTree.Element:
    return ElementTree.fromstring(score_plot(np.array(genuine, np.float32), np.array(impostor, np.float32), threshold))


def texts(image: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in image.iter(f"{SVG}text")]


def outline(image: ElementTree.Element, number: int) -> np.ndarray:
    """(n, 2) the corners of one of the two histograms, in pixels."""
    return np.array([p.split(",") for p in list(image.iter(f"{SVG}polygon"))[number].get("points").split()], float)


def test_the_histograms_stand_where_their_scores_are_and_are_named_with_their_numbers():
    image = drawn([0.9] * 30, [0.5] * 10 + [0.6] * 10)
    assert {"genuine (30)", "impostor (20)", "cosine similarity"} <= set(texts(image))
    genuine, impostor = outline(image, 0), outline(image, 1)
    base, top = genuine[0, 1], genuine[:, 1].min()
    assert genuine[genuine[:, 1] < base, 0].min() > impostor[impostor[:, 1] < base, 0].max()
    # Both distributions have one area: each of two equal bars is half as high.
    assert base - impostor[:, 1].min() == pytest.approx((base - top) / 2, abs=0.2)


def test_the_threshold_is_a_line_between_them_that_says_its_value():
    image = drawn([0.9, 0.91], [0.5, 0.51], threshold=0.7)
    assert "threshold 0.7000" in texts(image)
    (line,) = image.iter(f"{SVG}path")
    place = float(line.get("d").split(" ")[0][1:])
    genuine, impostor = outline(image, 0), outline(image, 1)
    base = genuine[0, 1]
    assert impostor[impostor[:, 1] < base, 0].max() < place < genuine[genuine[:, 1] < base, 0].min()
    assert list(drawn([0.9], [0.5]).iter(f"{SVG}path")) == []


@pytest.mark.parametrize(("genuine", "impostor"), [([], [0.5]), ([0.5], []), ([0.5], [0.5]), ([-1.0], [1.0])])
def test_any_scores_can_be_drawn(genuine, impostor):
    image = drawn(genuine, impostor)
    corners = np.concatenate([outline(image, 0), outline(image, 1)])
    assert np.isfinite(corners).all()
    assert (corners >= 0).all()
    assert (corners <= [float(image.get("width")), float(image.get("height"))]).all()


def test_the_drawing_of_ten_thousand_scores_is_small():
    rng = np.random.default_rng(0)
    assert len(score_plot(rng.normal(0.9, 0.03, 10_000), rng.normal(0.7, 0.05, 10_000), 0.8)) < 8_000
