"""Vectors by hand: from an image, compared with others, and of stored crops."""

import numpy as np
import pytest
from PIL import Image

from pipelines.database import crops
from pipelines.demo_photos import CLASS_NAME
from pipelines.errors import ModelError, ParameterError, PhotoError, UnknownIdError
from pipelines.resources.embedding.registry import get_spec
from pipelines.services import EmbeddingService

SERVICE = EmbeddingService("dlib")


def stored_vectors(database, crop_ids: list[int]) -> np.ndarray:
    with database.connection() as connection:
        return crops.read_embeddings(connection, "dlib", SERVICE.version, crop_ids, 128)[1]


def test_two_vectors_are_compared_on_either_scale():
    assert SERVICE.calculate_similarity([1, 0], [1, 0], scale="cosine") == 1.0
    assert SERVICE.calculate_similarity([1, 0], [0, 2], scale="cosine") == 0.0
    assert SERVICE.calculate_similarity([1, 0], [1, 0]) == pytest.approx(0.99)
    threshold = get_spec("dlib").verification_threshold
    turned = [1 - threshold, np.sqrt(1 - (1 - threshold) ** 2)]
    assert SERVICE.calculate_similarity([1, 0], turned) == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(ValueError, match="raw"):
        SERVICE.calculate_similarity([1, 0], [1, 0], scale="raw")
    with pytest.raises(ValueError, match="zero"):
        SERVICE.calculate_similarity([1, 0], [0, 0])


def test_the_best_match_is_the_first_of_the_likest():
    assert SERVICE.find_best_match([1, 0], [[0, 1], [1, 0], [2, 0]], scale="cosine") == (1, 1.0)
    index, score = SERVICE.find_best_match([1, 0], [[0, 1], [1, 1]])
    assert (index, score) == (1, SERVICE.calculate_similarity([1, 0], [1, 1]))
    with pytest.raises(ValueError, match="no candidates"):
        SERVICE.find_best_match([1, 0], [])


@pytest.mark.parametrize(("a", "b"), [([1, 0], [1, 0, 0]), ([[1, 0], [0, 1]], [1, 0]), (1, 1), ([], [[]])])
def test_vectors_of_other_shapes_are_refused_in_a_sentence(a, b):
    with pytest.raises(ParameterError, match=r"^Vectors of shapes \(.*\) and \(.*\) cannot be compared: give two of"):
        SERVICE.calculate_similarity(a, b)


@pytest.mark.parametrize(
    ("query", "candidates"), [([1, 0], [[1, 0, 0]]), ([[1, 0]], [[1, 0]]), (1, [1]), ([1], [[[1]]])]
)
def test_candidates_of_another_length_are_refused_in_a_sentence(query, candidates):
    with pytest.raises(ParameterError, match=r"^A query of shape \(.*\) cannot be compared with candidates of shape"):
        SERVICE.find_best_match(query, candidates)


def test_a_model_that_is_not_known_is_refused_when_the_service_is_made():
    with pytest.raises(ModelError, match=r"^There is no embedding model 'nope': choose one of facenet, .*dlib"):
        EmbeddingService("nope")


def test_an_image_gives_the_vector_of_its_largest_face(detect, database, unnamed_photos):
    """The same as the pipeline stores for that face."""
    session_id = detect("2026-09-07")
    path = min((unnamed_photos / CLASS_NAME / "2026-09-07").glob("*.jpg"))
    with database.connection() as connection:
        (largest,) = connection.execute(
            """SELECT f.id FROM face_crops f JOIN images i ON i.id = f.image_id
            WHERE i.session_id = %s AND i.path LIKE %s ORDER BY f.width * f.height DESC LIMIT 1""",
            [session_id, f"%{path.name}"],
        ).fetchone()
    assert SERVICE.generate_crop_embedding(largest).status == "success"
    (stored,) = stored_vectors(database, [largest])
    by_path = SERVICE.generate_embedding(path)
    assert by_path.shape == (128,)
    assert float(by_path @ stored) == pytest.approx(1, abs=1e-5)
    with Image.open(path) as photo:
        by_pixels = SERVICE.generate_embedding(np.asarray(photo.convert("RGB")))
    assert float(by_pixels @ stored) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((50, 50), np.uint8), r"uint8 of shape \(50, 50\), not uint8 RGB"),
        (np.zeros((50, 50, 4), np.uint8), "not uint8 RGB"),
        (np.zeros((50, 50, 3), np.float32), "float32"),
        (np.zeros((0, 50, 3), np.uint8), r"shape \(0, 50, 3\)"),
        (None, "object of shape"),
        (np.zeros((50, 50, 3), np.uint8), "No face was found"),
        ("nowhere.jpg", "nowhere.jpg' cannot be read"),
    ],
)
def test_what_shows_no_face_is_said(image, words):
    with pytest.raises(PhotoError, match=words):
        SERVICE.generate_embedding(image)


def test_a_crop_whose_photo_is_gone_is_not_embedded_from_what_lies_there_now(detect, database):
    session_id = detect("2026-09-07")
    with database.connection() as connection:
        crop_ids = [i for (i,) in connection.execute("SELECT f.id FROM face_crops f ORDER BY 1")]
        connection.execute("UPDATE images SET removed_at = now() WHERE session_id = %s", [session_id])
    with pytest.raises(UnknownIdError):
        SERVICE.generate_crop_embedding(crop_ids[0])
    answer = SERVICE.generate_crop_embeddings(crop_ids)
    assert (answer.status, answer.errors, answer.total) == ("error", 12, 12)
    assert SERVICE.embed_missing(crop_ids) == {}
    assert len(stored_vectors(database, crop_ids)) == 0
