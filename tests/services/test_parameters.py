"""Every parameter of the operations at its bounds, just outside, of a wrong type, and missing."""

import pytest

from pipelines.errors import ParameterError
from pipelines.services.operations import OPERATIONS
from pipelines.services.parameters import MAX_ID, checked

MODELS = (["facenet", "arcface", "facenet512", "dlib"], ["", "Facenet", "vgg", 1, None, True])
SWITCH = ([True, False], ["true", 1, 0, None])
SCALE = (["calibrated", "cosine"], ["", "raw", 1, None])
THRESHOLD = ([0, 0.0, 0.5, 1, 1.0], [-0.001, 1.001, "0.5", None, True, float("nan"), float("inf")])
IDS = ([1, MAX_ID], [0, -1, MAX_ID + 1, 1.5, "1", None, True])
EMBEDDING = {"model_name": ("facenet", *MODELS), "force_regenerate": (False, *SWITCH)}
IDENTITY = {"embedding_model": ("facenet", *MODELS), "similarity_scale": ("calibrated", *SCALE)}
CLUSTERING = IDENTITY | {
    "max_clusters": (50, [1, 50, 200], [0, 201, -1, 1.5, "50", None, True]),
    "similarity_threshold": (0.5, *THRESHOLD),
    "create_students": (True, *SWITCH),
    "assign_crops": (True, *SWITCH),
}
ASSIGNMENT = IDENTITY | {
    "k": (5, [1, 5, 20], [0, 21, -1, 1.5, "5", None, True]),
    "similarity_threshold": (0.6, *THRESHOLD),
    "use_voting": (True, *SWITCH),
    "auto_commit": (True, *SWITCH),
}
# Operation -> parameter -> (default, what is accepted, what is refused); `...` is a parameter that must be given.
PARAMETERS = {
    "generate_embedding": EMBEDDING | {"crop_id": (..., *IDS)},
    "generate_embeddings_batch": EMBEDDING
    | {"face_crop_ids": (..., [[1], [1, 1], [MAX_ID]], [[], [0], [1, "2"], [1.5], 1, "1", None, [MAX_ID + 1]])},
    "cluster_session_crops": CLUSTERING | {"session_id": (..., *IDS)},
    "cluster_class_crops": CLUSTERING | {"include_identified": (False, *SWITCH), "class_id": (..., *IDS)},
    "assign_crop": ASSIGNMENT | {"crop_id": (..., *IDS)},
    "assign_session_crops": ASSIGNMENT | {"session_id": (..., *IDS)},
    "assign_class_crops": ASSIGNMENT | {"class_id": (..., *IDS)},
}
ROWS = [(operation, name, *row) for operation, of_it in PARAMETERS.items() for name, row in of_it.items()]


def required(operation: str) -> dict:
    return {name: good[0] for name, (default, good, _) in PARAMETERS[operation].items() if default is ...}


def test_the_table_is_complete():
    assert {name: set(of_it) for name, of_it in PARAMETERS.items()} == {
        name: set(operation.parameters.model_fields) for name, operation in OPERATIONS.items()
    }


@pytest.mark.parametrize(("operation", "name", "default", "good", "bad"), ROWS)
def test_each_parameter_at_its_bounds_outside_of_a_wrong_type_and_missing(operation, name, default, good, bad):
    kind = OPERATIONS[operation].parameters
    rest = {key: value for key, value in required(operation).items() if key != name}
    for value in good:
        assert getattr(checked(kind, **{**rest, name: value}), name) == value
    for value in bad:
        with pytest.raises(ParameterError, match=rf"The parameter {name}\b.* cannot be used: "):
            checked(kind, **{**rest, name: value})
    if default is ...:
        with pytest.raises(ParameterError, match=rf"The parameter {name} cannot be used: it is missing"):
            checked(kind, **rest)
    else:
        assert getattr(checked(kind, **rest), name) == default


@pytest.mark.parametrize(
    ("operation", "name", "value", "allowed"),
    [
        ("cluster_session_crops", "max_clusters", 201, "1 to 200"),
        ("cluster_class_crops", "similarity_threshold", 1.5, "0 to 1"),
        ("assign_crop", "k", 0, "1 to 20"),
        ("assign_crop", "k", "5", "1 to 20"),
        ("assign_class_crops", "class_id", 0, f"1 to {MAX_ID}"),
        ("generate_embeddings_batch", "face_crop_ids", [0], f"1 to {MAX_ID}"),
        ("generate_embeddings_batch", "face_crop_ids", [1, "x"], f"1 to {MAX_ID}"),
    ],
)
def test_the_range_is_in_the_message(operation, name, value, allowed):
    with pytest.raises(ParameterError, match=rf"The parameter {name}\b.*\(allowed: {allowed}\)\.$"):
        checked(OPERATIONS[operation].parameters, **{**required(operation), name: value})


def test_a_name_that_is_no_parameter_is_refused():
    with pytest.raises(ParameterError, match="The parameter similarity cannot be used"):
        checked(OPERATIONS["assign_crop"].parameters, crop_id=1, similarity=0.5)


def test_every_parameter_is_described():
    for operation in OPERATIONS.values():
        assert all(field.description for field in operation.parameters.model_fields.values()), operation.name
