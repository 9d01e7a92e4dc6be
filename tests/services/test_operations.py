"""The operations on real crops: every field of every answer, and how right they are on labelled photos."""

from types import NoneType
from typing import Any

import dagster as dg
import pytest

from pipelines.assets import PHOTO_ASSETS
from pipelines.database import catalog
from pipelines.errors import WeightsError
from pipelines.partitions import SessionKey, sessions
from pipelines.resources import build_resources
from pipelines.services.context import default_context
from pipelines.services.evaluation import evaluate_class
from pipelines.services.operations import OPERATIONS
from pipelines.services.parameters import checked
from pipelines.settings import get_settings

MODEL = {"embedding_model": "dlib"}
NEIGHBOUR = {
    "crop_id": int,
    "student_id": int,
    "student_name": str,
    "similarity": float,
    "cosine_similarity": float,
}
ASSIGNED = {
    "status": str,
    "crop_id": int,
    "student_id": (int, NoneType),
    "student_name": (str, NoneType),
    "confidence": (float, NoneType),
    "similarity": (float, NoneType),
    "cosine_similarity": (float, NoneType),
    "k_nearest": list,
    "message": (str, NoneType),
}
CLUSTERED = {
    "status": str,
    "clusters_found": int,
    "students_created": int,
    "crops_assigned": int,
    "cluster_sizes": dict,
    "max_clusters_reached": bool,
    "students_emptied": list,
    "cosine_threshold": float,
    "errors": int,
}
BATCH = {
    "status": str,
    "total_crops": int,
    "assigned": int,
    "no_match": int,
    "needs_review": int,
    "errors": int,
    "parameters": dict,
    "cosine_threshold": float,
    "results": list,
}
FIELDS = {
    "generate_embedding": {
        "status": str,
        "crop_id": int,
        "embedding_model": str,
        "embedding_dimension": int,
        "message": str,
    },
    "generate_embeddings_batch": {
        "status": str,
        "total": int,
        "success": int,
        "skipped": int,
        "errors": int,
        "model_name": str,
        "results": list,
    },
    "cluster_session_crops": CLUSTERED | {"session_id": int, "session_name": str},
    "cluster_class_crops": CLUSTERED | {"class_id": int, "class_name": str},
    "assign_crop": ASSIGNED,
    "assign_session_crops": BATCH | {"session_id": int},
    "assign_class_crops": BATCH | {"class_id": int},
}


def perform(name: str, **parameters: Any) -> dict[str, Any]:
    """The answer as JSON, once its fields are the ones of the table."""
    operation = OPERATIONS[name]
    answer = operation.perform(default_context(), checked(operation.parameters, **parameters), None)
    fields = answer.model_dump(mode="json")
    assert_fields(fields, FIELDS[name])
    for result in fields.get("results", []):
        expected = {"crop_id": int, "status": str, "reason": (str, NoneType)} if name.startswith("gen") else ASSIGNED
        assert_fields(result, expected)
    for neighbour in fields.get("k_nearest", []):
        assert_fields(neighbour, NEIGHBOUR)
    return fields


def assert_fields(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    wrong = {name: value for name, value in found.items() if not isinstance(value, expected[name])}
    assert wrong == {}


@pytest.mark.slow
def test_every_field_of_every_answer_on_the_sample_class(detect, database):
    first, second = detect("2026-09-07"), detect("2026-09-14")
    with database.connection() as connection:
        class_id = catalog.session_by_id(connection, first).class_id
        rows = connection.execute("SELECT f.id, i.session_id FROM face_crops f JOIN images i ON i.id = f.image_id")
        crop_ids = [crop_id for crop_id, session in rows if session == first]

    one = perform("generate_embedding", crop_id=crop_ids[0], model_name="dlib")
    assert (one["status"], one["embedding_model"], one["embedding_dimension"]) == ("success", "dlib", 128)
    assert perform("generate_embedding", crop_id=crop_ids[0], model_name="dlib")["status"] == "skipped"
    forced = perform("generate_embedding", crop_id=crop_ids[0], model_name="dlib", force_regenerate=True)
    assert forced["status"] == "success"

    many = perform("generate_embeddings_batch", face_crop_ids=[*crop_ids, *crop_ids, 999], model_name="dlib")
    assert (many["status"], many["total"], many["success"], many["skipped"], many["errors"]) == (
        *("partial", len(crop_ids) + 1, len(crop_ids) - 1, 1, 1),
    )
    assert [r["crop_id"] for r in many["results"]] == [*crop_ids, 999]
    assert many["results"][-1] == {"crop_id": 999, "status": "error", "reason": "There is no face crop 999."}

    # The second session's crops have no vectors yet: they get them on the way.
    only = perform("cluster_session_crops", session_id=second, create_students=False, **MODEL)
    assert (only["students_created"], only["crops_assigned"], sum(only["cluster_sizes"].values())) == (0, 0, 6)
    found = perform("cluster_class_crops", class_id=class_id, **MODEL)
    assert (found["clusters_found"], found["students_created"], found["crops_assigned"]) == (6, 6, 18)
    assert found["class_name"] == "Demo101"
    squeezed = perform("cluster_session_crops", session_id=first, max_clusters=1, create_students=False, **MODEL)
    assert squeezed["max_clusters_reached"]
    assert squeezed["students_emptied"] == []
    assert perform("assign_crop", crop_id=crop_ids[0], **MODEL)["status"] == "already_assigned"

    with database.connection() as connection:
        connection.execute(
            "DELETE FROM assignments USING face_crops f, images i WHERE f.id = crop_id AND i.id = image_id AND session_id = %s",
            [second],
        )
    suggestion = perform("assign_session_crops", session_id=second, auto_commit=False, **MODEL)
    assert (suggestion["assigned"], suggestion["total_crops"]) == (6, 6)
    crop_id = suggestion["results"][0]["crop_id"]
    with database.connection() as connection:
        connection.execute("DELETE FROM embeddings_dlib")
    # The identified crops get their vectors again too, else there would be nobody to compare with.
    assert perform("assign_crop", crop_id=crop_id, **MODEL)["k_nearest"]
    assert perform("assign_class_crops", class_id=class_id, **MODEL)["assigned"] == 5


def test_without_weights_nothing_is_begun(embedded_class):
    made = embedded_class.session("m__1", [["ann"]])
    for name, operation in OPERATIONS.items():
        values: dict[str, Any] = {
            field: {"crop_id": made[0, "ann"], "face_crop_ids": list(made.values())}.get(field, 1)
            for field, info in operation.parameters.model_fields.items()
            if info.is_required()
        }
        with pytest.raises(WeightsError, match=r"facenet_weights\.h5"):
            perform(name, **values)


@pytest.mark.slow
def test_labelled_photos_are_assigned_and_clustered_right(database, shared_faces, tmp_path):
    """With the operations' own defaults, whose thresholds were not chosen on these people."""
    data = shared_faces / "sessions" / "caltech_class"
    settings = get_settings().model_copy(update={"photos": str(data.parent), "home": tmp_path})
    instance = dg.DagsterInstance.ephemeral()
    for folder in sorted(data.iterdir(), key=lambda path: path.name != "enrol"):
        if folder.is_dir():
            key = str(SessionKey(data.name, folder.name))
            instance.add_dynamic_partitions(sessions.name, [key])
            resources = build_resources(settings)
            assert dg.materialize(PHOTO_ASSETS, instance=instance, partition_key=key, resources=resources).success
    with database.connection() as connection:
        class_id = catalog.find_class(connection, data.name)
    assigned = perform("assign_class_crops", class_id=class_id, **MODEL)
    clustered = perform("cluster_class_crops", class_id=class_id, **MODEL)
    assert clustered["students_created"] == 4, "one for each guest"
    assert assigned["assigned"] + assigned["needs_review"] + assigned["no_match"] == assigned["total_crops"]
    result = evaluate_class(database, data.name, "dlib", data / "labels.csv", data / "attendance.csv")
    assert (result.guests_accepted, result.attendance_precision) == (0, 1.0)
    assert result.attendance_recall >= 0.98
    assert result.bcubed_f1 >= 0.97
