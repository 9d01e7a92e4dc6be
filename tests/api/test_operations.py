"""The seven operations over HTTP: paths, bodies, answers and what is refused."""

import re
import threading
import time

import numpy as np
import pytest
from PIL import Image
from skimage import data

from pipelines.api import app, writers
from pipelines.database import catalog, crops
from pipelines.faces.face import DetectedFace
from pipelines.partitions import SessionKey
from pipelines.resources import database as database_resource
from pipelines.services.answers import (
    AssignmentAnswer,
    BatchEmbeddingAnswer,
    ClassAssignmentAnswer,
    ClassClusteringAnswer,
    EmbeddingAnswer,
    SessionAssignmentAnswer,
    SessionClusteringAnswer,
)
from pipelines.settings import get_settings

API = "/api/attendance"
DLIB = {"embedding_model": "dlib"}


def operations(school):
    """Path, body and answer of each operation."""
    crop, session = school.crops["s1", 0, "Ada"], school.sessions["s1"]
    return {
        "generate_embedding": (f"/face-crops/{crop}/generate-embedding/", {"model_name": "dlib"}, EmbeddingAnswer),
        "generate_embeddings_batch": (
            "/face-crops/generate-embeddings-batch/",
            {"face_crop_ids": [crop], "model_name": "dlib"},
            BatchEmbeddingAnswer,
        ),
        "cluster_session_crops": (f"/sessions/{session}/cluster-crops/", DLIB, SessionClusteringAnswer),
        "cluster_class_crops": (f"/classes/{school.class_id}/cluster-crops/", DLIB, ClassClusteringAnswer),
        "assign_crop": (f"/face-crops/{crop}/assign/", DLIB, AssignmentAnswer),
        "assign_session_crops": (f"/sessions/{session}/assign-crops/", DLIB, SessionAssignmentAnswer),
        "assign_class_crops": (f"/classes/{school.class_id}/assign-crops/", DLIB, ClassAssignmentAnswer),
    }


NAMES = (
    *("generate_embedding", "generate_embeddings_batch", "cluster_session_crops", "cluster_class_crops"),
    *("assign_crop", "assign_session_crops", "assign_class_crops"),
)
OF_A_CLASS = ("cluster_session_crops", "cluster_class_crops", "assign_session_crops", "assign_class_crops")


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_answers_every_field_with_and_without_the_last_slash(client, school, name):
    path, body, answer = operations(school)[name]
    for spelt in (path, path.rstrip("/")):
        response = client.post(API + spelt, json=body)
        assert response.status_code == 200, response.text
        assert response.json().keys() == answer.model_fields.keys()
        answer.model_validate(response.json(), strict=True)


def test_the_work_is_done_and_seen(client, school):
    crop = school.crops["s1", 0, "Ada"]
    assigned = client.post(f"{API}/face-crops/{crop}/assign", json={**DLIB, "k": 1}).json()
    assert (assigned["status"], assigned["student_name"]) == ("assigned", "Ada")
    client.post(f"{API}/classes/{school.class_id}/assign-crops/", json=DLIB)
    made = client.post(f"{API}/classes/{school.class_id}/cluster-crops/", json=DLIB).json()
    assert made["students_created"] == 1
    shown = client.get(f"{API}/face-crops/", params={"session_id": school.sessions["s2"]}).json()["results"]
    names = {crop["id"]: crop["student_name"] for crop in shown}
    assert names[school.crops["s2", 1, "Ada"]] == "Ada"
    assert names[school.crops["s2", 1, "Eve"]] == "Class_Math101_Cluster_1"


def test_a_suggestion_writes_nothing(client, school):
    crop = school.crops["s1", 0, "Ada"]
    suggested = client.post(f"{API}/face-crops/{crop}/assign/", json={**DLIB, "auto_commit": False}).json()
    assert suggested["student_name"] == "Ada"
    assert client.get(f"{API}/face-crops/{crop}/").json()["student_id"] is None


@pytest.mark.parametrize("content", [b"", b"{}"])
def test_an_empty_body_means_all_defaults(client, school, content):
    path, _, _ = operations(school)["cluster_session_crops"]
    response = client.post(API + path, content=content, headers={"content-type": "application/json"})
    # The default model, whose weights a clone does not have.
    assert response.status_code == 503
    assert "facenet" in response.json()["detail"]


def test_a_real_photo_is_embedded(client, database, tmp_path):
    (tmp_path / "Space1" / "s1").mkdir(parents=True)
    Image.fromarray(data.astronaut()).save(tmp_path / "Space1" / "s1" / "a.png")
    landmarks = np.array([[203, 108], [244, 107], [226, 130], [207, 150], [243, 149]], np.float32)
    with database.connection() as connection:
        session = catalog.ensure_session(connection, SessionKey("Space1", "s1"))
        catalog.record_photo_root(connection, "Space1", str(tmp_path))
        catalog.register_image(
            connection, session.id, sha256="a", path="Space1/s1/a.png", size_bytes=1, width=512, height=512,
            taken_at=None, refused_reason=None,
        )  # fmt: skip
        (image,) = catalog.session_images(connection, session.id)
        face = DetectedFace((178.0, 66.0, 90.0, 112.0), landmarks, 0.99)
        crop = crops.insert_crop(connection, image.id, face, None, sharpness=1.0, yaw=0.0)
    path = f"{API}/face-crops/{crop}/generate-embedding/"
    answers = [
        client.post(path, json={"model_name": "dlib", "force_regenerate": f}).json() for f in (False, False, True)
    ]
    assert [answer["status"] for answer in answers] == ["success", "skipped", "success"]
    assert answers[0]["embedding_dimension"] == 128


# What is refused


BODIES = {
    "not an object": b"[]",
    "null": b"null",
    "an unknown name": b'{"threshold": 1}',
    "self": b'{"self": 1}',
    "half a surrogate pair": b'{"\\ud800": 1, "model_name": "\\udfff"}',
    "not a number": b'{"similarity_threshold": NaN, "max_clusters": NaN, "k": NaN}',
    "not JSON": b"{",
    "a NUL": b'{"embedding_model": "dl\\u0000ib", "model_name": "\\u0000"}',
    "a huge number": b'{"max_clusters": 1e999, "k": 123456789012345678901234567890}',
}


def test_a_body_that_cannot_be_used_is_422(client, school):
    for path, _, _ in operations(school).values():
        for why, content in BODIES.items():
            response = client.post(API + path, content=content, headers={"content-type": "application/json"})
            assert response.status_code == 422, (path, why, response.text)
            for problem in response.json()["detail"]:
                assert problem.keys() == {"loc", "msg", "type"}
                assert problem["loc"][0] == "body"


@pytest.mark.parametrize("content", [b'{"k": "\xff"}', b"[" * 100_000, b'{"k": ' + b"1" * 5000 + b"}"])
def test_bytes_that_no_json_parser_takes_are_400(client, school, content):
    path, _, _ = operations(school)["assign_crop"]
    response = client.post(API + path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert isinstance(response.json()["detail"], str)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "x", ""])
def test_a_body_of_another_type_is_422(client, school, content_type):
    path, _, _ = operations(school)["assign_crop"]
    response = client.post(API + path, content=b'{"k": 3}', headers={"content-type": content_type})
    assert response.status_code == 422


def test_a_body_beyond_any_list_of_ids_is_413(client, school, caplog):
    path, _, _ = operations(school)["assign_crop"]
    refused = client.post(API + path, content=b" " * 5_000_000)

    def chunks():
        for _ in range(50):
            yield b" " * 100_000

    with caplog.at_level("WARNING"):
        for answer in (refused, client.post(API + path, content=chunks())):
            assert answer.status_code == 413
            assert answer.json() == {"detail": "The body is larger than 4 MiB: send less at a time."}
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "private, no-store"
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("name", "field", "value", "bounds"),
    [
        ("assign_crop", "k", 0, "1 to 20"),
        ("assign_crop", "k", 21, "1 to 20"),
        ("assign_session_crops", "similarity_threshold", -0.1, "0 to 1"),
        ("cluster_session_crops", "max_clusters", 201, "1 to 200"),
        ("cluster_class_crops", "similarity_threshold", 1.1, "0 to 1"),
    ],
)
def test_422_names_the_field_and_its_range(client, school, name, field, value, bounds):
    path, _, _ = operations(school)[name]
    (problem,) = client.post(API + path, json={field: value}).json()["detail"]
    assert problem["loc"] == ["body", field]
    assert field in problem["msg"]
    assert bounds in problem["msg"]


@pytest.mark.parametrize("identity", ["0", "-1", "x", "1.5", "9223372036854775808", "%00", "1e3"])
def test_an_id_that_cannot_be_one_is_422_with_its_range(client, identity):
    response = client.post(f"{API}/sessions/{identity}/cluster-crops/")
    assert response.status_code == 422
    assert "1 to 9223372036854775807" in response.json()["detail"][0]["msg"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "generate_embeddings_batch"])
def test_an_unknown_id_is_404(client, school, name):
    path, body, _ = operations(school)[name]
    kind, _, operation = path.strip("/").split("/")
    response = client.post(f"{API}/{kind}/999999/{operation}/", json=body)
    assert response.status_code == 404
    assert "999999" in response.json()["detail"]


def test_an_unknown_id_in_a_list_fails_alone(client, school):
    crop = school.crops["s1", 0, "Ada"]
    body = {"face_crop_ids": [crop, 999_999], "model_name": "dlib"}
    answer = client.post(f"{API}/face-crops/generate-embeddings-batch/", json=body).json()
    assert [result["status"] for result in answer["results"]] == ["skipped", "error"]


def test_missing_weights_are_503_with_the_command_that_helps(client, school):
    for name, (path, _, _) in operations(school).items():
        model = "model_name" if name.startswith("generate") else "embedding_model"
        body = {model: "arcface"}
        if name == "generate_embeddings_batch":
            body["face_crop_ids"] = [school.crops["s1", 0, "Ada"]]
        response = client.post(API + path, json=body)
        assert response.status_code == 503, name
        assert "attendansee models fetch arcface" in response.json()["detail"]
        assert "arcface_weights.h5" in response.json()["detail"]
        assert str(get_settings().home) not in response.text


def test_an_unknown_id_is_404_whether_or_not_weights_are_missing(client, school):
    for name, (path, _, _) in operations(school).items():
        if name != "generate_embeddings_batch":
            nowhere = re.sub(r"/\d+/", "/99999/", path)
            model = "model_name" if name.startswith("generate") else "embedding_model"
            assert client.post(API + nowhere, json={model: "arcface"}).status_code == 404, name


def test_an_unusable_database_is_503_and_its_place_is_for_the_log(client, school, database, monkeypatch, caplog):
    monkeypatch.setenv("DATABASE_URL", "postgresql://someone@127.0.0.1:1/attendansee")
    get_settings.cache_clear()
    database_resource._ready_url.cache_clear()
    response = client.get(f"{API}/classes/")
    assert response.status_code == 503
    assert "127.0.0.1" not in response.text
    assert "127.0.0.1" in caplog.text


@pytest.mark.parametrize("name", ["cluster_session_crops", "assign_crop"])
def test_a_class_that_somebody_else_decides_about_is_409(serve, school, database, name, monkeypatch):
    monkeypatch.setattr(app, "LOCK_PATIENCE_S", 0.2)
    client = serve()
    path, body, _ = operations(school)[name]
    with database.connection() as connection:
        catalog.lock_class(connection, school.class_id)
        response = client.post(API + path, json=body)
    assert response.status_code == 409
    assert "try again" in response.json()["detail"]
    assert client.post(API + path, json=body).status_code == 200


def test_reads_are_quick_while_calls_that_write_wait_for_a_class(serve, school, database, monkeypatch):
    monkeypatch.setattr(app, "LOCK_PATIENCE_S", 3)
    monkeypatch.setattr(writers, "QUEUE_PATIENCE_S", 1)
    client = serve()
    path, body, _ = operations(school)["assign_crop"]
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(client.post(API + path, json=body))) for _ in range(32)]
    with database.connection() as connection:
        catalog.lock_class(connection, school.class_id)
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        asked = time.monotonic()
        assert client.get(f"{API}/classes/").status_code == 200
        assert time.monotonic() - asked < 1
        for thread in threads:
            thread.join()
    assert sorted(answer.status_code for answer in answers) == [409] * writers.WRITERS + [503] * (32 - writers.WRITERS)
    assert all("try again" in answer.json()["detail"] for answer in answers)
    assert client.post(API + path, json=body).status_code == 200


def test_a_database_that_goes_away_during_a_call_is_503(client, school, database, monkeypatch):
    path, body, _ = operations(school)["assign_session_crops"]
    real = catalog.session_by_id

    def interrupted(connection, session_id):
        with database.connection() as other:
            other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
        return real(connection, session_id)

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "session_by_id", interrupted)
        response = client.post(API + path, json=body)
    assert response.status_code == 503
    assert "try again" in response.json()["detail"]
    assert client.post(API + path, json=body).status_code == 200


def test_what_was_deleted_during_a_call_is_409(client, school, monkeypatch):
    def delete(connection, crop_id):
        connection.execute("INSERT INTO cluster_members (cluster_id, crop_id) VALUES (1, %s)", [crop_id])

    monkeypatch.setattr(catalog, "class_of_crop", delete)
    path, body, _ = operations(school)["assign_crop"]
    response = client.post(API + path, json=body)
    assert response.status_code == 409
    assert "try again" in response.json()["detail"]


def test_a_mistake_of_ours_is_500_and_its_log_holds_no_value(client, school, monkeypatch, caplog):
    secret = " ".join(["Ada", "Lovelace"])

    def mistaken(connection, crop_id):
        raise RuntimeError(secret)

    monkeypatch.setattr(catalog, "class_of_crop", mistaken)
    path, body, _ = operations(school)["assign_crop"]
    response = client.post(API + path, json=body)
    assert response.status_code == 500
    assert secret not in response.text + caplog.text
    assert "assign_crop failed with RuntimeError" in caplog.text
    assert "in mistaken" in caplog.text


def test_clients_at_once_get_right_answers(client, school):
    path, _, _ = operations(school)["assign_crop"]
    answers = []

    def ask():
        for _ in range(5):
            response = client.post(API + path, json={**DLIB, "auto_commit": False})
            answers.append((response.status_code, response.json().get("student_name")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [(200, "Ada")] * 40
