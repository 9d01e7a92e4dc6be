"""Lists and single things: what they hold, pages, filters, and what is not there."""

import numpy as np
import pytest

from pipelines.database import catalog
from pipelines.resources.photo_store import PhotoStore
from pipelines.settings import get_settings

API = "/api/attendance"


@pytest.fixture
def assigned(client, school):
    """The class after its first clustering and assignment; Eve has become a provisional student."""
    for operation in ("assign-crops", "cluster-crops"):
        path = f"{API}/classes/{school.class_id}/{operation}/"
        assert client.post(path, json={"embedding_model": "dlib"}).status_code == 200
    return school


def results(client, path, **query):
    response = client.get(API + path, params=query)
    assert response.status_code == 200, response.text
    page = response.json()
    assert page.keys() == {"total", "limit", "offset", "results"}
    return page["results"]


def test_classes(client, assigned):
    (listed,) = results(client, "/classes/")
    assert listed == client.get(f"{API}/classes/{assigned.class_id}/").json()
    assert listed == {
        "id": assigned.class_id,
        "name": "Math101",
        "active_model": "dlib",
        "session_count": 2,
        "student_count": 3,
    }


def test_the_register(client, assigned):
    register = client.get(f"{API}/classes/{assigned.class_id}/attendance/").json()
    assert (register["class_name"], register["model"]) == ("Math101", "dlib")
    assert [session["session"] for session in register["sessions"]] == ["s1", "s2"]
    assert register["sessions"][0]["attendance"] == {
        "Ada": "present",
        "Bob": "present",
        "Class_Math101_Cluster_1": "unknown",
    }
    assert register["sessions"][0]["counts"] == {
        **{"present": 2, "absent": 0, "unsure": 0},
        **{"excused": 0, "unknown": 1, "visitor": 0},
    }


def test_sessions(client, assigned, embedded_class):
    embedded_class.session("Other__s1", [["Zoe"]])
    listed = results(client, "/sessions/", class_id=assigned.class_id)
    assert [(session["name"], session["is_enrolment"]) for session in listed] == [
        ("enrol", True),
        ("s1", False),
        ("s2", False),
    ]
    assert len(results(client, "/sessions/")) == 4
    session = client.get(f"{API}/sessions/{assigned.sessions['s1']}/").json()
    assert (session["image_count"], session["face_crop_count"]) == (2, 5)
    assert session == listed[1]


def test_photos(client, assigned, database):
    listed = results(client, "/images/", session_id=assigned.sessions["s1"])
    assert [photo["path"] for photo in listed] == ["Math101/s1/0.jpg", "Math101/s1/1.jpg"]
    assert [photo["face_crop_count"] for photo in listed] == [3, 2]
    assert client.get(f"{API}/images/{listed[0]['id']}/").json() == listed[0]
    with database.connection() as connection:
        connection.execute("UPDATE images SET removed_at = now() WHERE id = %s", [listed[0]["id"]])
        connection.execute("UPDATE images SET refused_reason = 'torn' WHERE id = %s", [listed[1]["id"]])
    (refused,) = results(client, "/images/", session_id=assigned.sessions["s1"])
    assert (refused["refused_reason"], refused["face_crop_count"]) == ("torn", 0)
    assert client.get(f"{API}/images/{listed[0]['id']}/").status_code == 404
    assert results(client, "/face-crops/", session_id=assigned.sessions["s1"]) == []


def test_face_crops_by_each_filter(client, assigned):
    ada, session = assigned.students["Ada"], assigned.sessions["s1"]
    everything = results(client, "/face-crops/")
    assert len(everything) == 12
    assert [crop["id"] for crop in everything] == sorted(crop["id"] for crop in everything)
    assert {crop["student_name"] for crop in results(client, "/face-crops/", student_id=ada)} == {"Ada"}
    assert len(results(client, "/face-crops/", student_id=ada)) == 5
    assert len(results(client, "/face-crops/", student_id=ada, session_id=session)) == 2
    assert len(results(client, "/face-crops/", class_id=assigned.class_id, identified=True)) == 12
    assert results(client, "/face-crops/", identified=False) == []
    photo = everything[-1]["image_id"]
    assert {crop["image_id"] for crop in results(client, "/face-crops/", image_id=photo)} == {photo}
    assert results(client, "/face-crops/", class_id=assigned.class_id + 1) == []


def test_a_face_crop_says_who_it_shows_and_why(client, assigned):
    crop = client.get(f"{API}/face-crops/{assigned.crops['s1', 0, 'Ada']}/").json()
    assert (crop["student_id"], crop["student_name"], crop["provisional"]) == (assigned.students["Ada"], "Ada", False)
    assert (crop["confirmed"], crop["state"], crop["decided_by"]) == (False, "assigned", "knn")
    assert crop["similarity"] > 0.5
    (portrait,) = [
        c for c in results(client, "/face-crops/", student_id=crop["student_id"]) if c["decided_by"] == "person"
    ]
    assert portrait["confirmed"]
    assert portrait["session_id"] == assigned.sessions["enrol"]
    eve = client.get(f"{API}/face-crops/{assigned.crops['s1', 0, 'Eve']}/").json()
    assert (eve["provisional"], eve["decided_by"]) == (True, "cluster")


def test_a_doubtful_face_crop_names_its_candidate_and_is_not_identified(client, assigned, database):
    crop = assigned.crops["s1", 0, "Ada"]
    with database.connection() as connection:
        connection.execute("UPDATE assignments SET state = 'needs_review' WHERE crop_id = %s", [crop])
    shown = client.get(f"{API}/face-crops/{crop}/").json()
    assert (shown["state"], shown["student_id"], shown["candidate_name"]) == ("needs_review", None, "Ada")
    assert [c["id"] for c in results(client, "/face-crops/", identified=False)] == [crop]


def test_the_active_model_says_who_a_crop_shows(client, assigned, database):
    with database.connection() as connection:
        connection.execute("UPDATE classes SET active_model = 'arcface'")
    shown = client.get(f"{API}/face-crops/{assigned.crops['s1', 0, 'Ada']}/").json()
    assert (shown["student_id"], shown["state"]) == (None, None)
    # What a person has confirmed does not depend on a model.
    assert {c["session_id"] for c in results(client, "/face-crops/", identified=True)} == {assigned.sessions["enrol"]}


def test_students(client, assigned):
    listed = results(client, "/students/", class_id=assigned.class_id)
    assert [(student["name"], student["face_crop_count"]) for student in listed] == [
        ("Ada", 5),
        ("Bob", 3),
        ("Class_Math101_Cluster_1", 4),
    ]
    assert results(client, "/students/", provisional=True) == listed[2:]
    assert results(client, "/students/", provisional=False) == listed[:2]
    assert client.get(f"{API}/students/{listed[2]['id']}/").json() == listed[2]
    assert results(client, "/students/", class_id=assigned.class_id + 1) == []


def test_similar_crops(client, assigned, database):
    unknown = assigned.crops["s2", 0, "Eve"]
    with database.connection() as connection:
        connection.execute("DELETE FROM assignments WHERE crop_id = %s", [unknown])
    path = f"{API}/face-crops/{assigned.crops['s1', 0, 'Eve']}/similar/"
    similar = client.get(path, params={"limit": 2}).json()
    assert similar["embedding_model"] == "dlib"
    assert len(similar["identified"]) == 2
    assert {crop["student_name"] for crop in similar["identified"]} == {"Class_Math101_Cluster_1"}
    assert [crop["crop_id"] for crop in similar["unidentified"]] == [unknown]
    assert client.get(path, params={"embedding_model": "arcface"}).status_code == 503


def test_counts_leave_out_merged_students_and_removed_photos(client, assigned, database):
    ada, bob = assigned.students["Ada"], assigned.students["Bob"]
    assert client.post(f"{API}/students/{bob}/merge/", json={"into_student_id": ada}).status_code == 200
    assert client.get(f"{API}/classes/{assigned.class_id}/").json()["student_count"] == 2
    with database.connection() as connection:
        connection.execute("UPDATE images SET removed_at = now() WHERE path = 'Math101/s1/0.jpg'")
    session = client.get(f"{API}/sessions/{assigned.sessions['s1']}/").json()
    assert (session["image_count"], session["face_crop_count"]) == (1, 2)


def test_a_portrait_is_of_the_student_who_is_kept(client, assigned):
    ada, bob = assigned.students["Ada"], assigned.students["Bob"]
    client.post(f"{API}/students/{bob}/merge/", json={"into_student_id": ada})
    portraits = results(client, "/images/", session_id=assigned.sessions["enrol"])
    assert [photo["student_id"] for photo in portraits] == [ada, ada]
    assert client.get(f"{API}/images/{portraits[1]['id']}/").json()["student_id"] == ada


def test_of_a_confirmed_crop_the_row_of_a_run_says_nothing(client, assigned, database):
    crop, ada, bob = assigned.crops["s1", 0, "Ada"], assigned.students["Ada"], assigned.students["Bob"]
    client.put(f"{API}/face-crops/{crop}/student/", json={"student_id": ada})
    with database.connection() as connection:
        connection.execute(
            "UPDATE assignments SET state = 'needs_review', decided_by = 'knn', student_id = %s WHERE crop_id = %s",
            [bob, crop],
        )
    shown = client.get(f"{API}/face-crops/{crop}/").json()
    assert (shown["state"], shown["decided_by"], shown["student_name"]) == ("assigned", "person", "Ada")
    assert (shown["candidate_id"], shown["candidate_name"]) == (None, None)


def test_similar_crops_of_a_class_without_a_model_are_found_by_the_default_one(serve, school, database):
    with database.connection() as connection:
        connection.execute("UPDATE classes SET active_model = NULL")
    path = f"{API}/face-crops/{school.crops['s1', 0, 'Ada']}/similar/"
    assert serve(model="dlib").get(path).json()["embedding_model"] == "dlib"


def test_similar_crops_of_one_whose_photo_is_gone_are_404(client, assigned, database):
    crop = assigned.crops["s1", 0, "Ada"]
    for change in ("removed_at = now()", "removed_at = NULL, refused_reason = 'torn'"):
        with database.connection() as connection:
            connection.execute(f"UPDATE images SET {change}")
        for query in ({}, {"embedding_model": "dlib"}):
            assert client.get(f"{API}/face-crops/{crop}/similar/", params=query).status_code == 404


def test_similar_crops_of_one_whose_photo_cannot_be_read_are_409(client, assigned, database, tmp_path):
    crop = assigned.crops["s1", 0, "Ada"]
    (tmp_path / "Math101" / "s1").mkdir(parents=True)
    (tmp_path / "Math101" / "s1" / "0.jpg").write_bytes(b"no photo")
    with database.connection() as connection:
        catalog.record_photo_root(connection, "Math101", str(tmp_path))
        connection.execute("DELETE FROM embeddings_dlib WHERE crop_id = %s", [crop])
    response = client.get(f"{API}/face-crops/{crop}/similar/")
    assert response.status_code == 409
    assert "0.jpg" in response.json()["detail"]


# Pages


def test_pages_cut_a_list_into_parts_that_make_the_whole(client, school):
    whole = [crop["id"] for crop in results(client, "/face-crops/")]
    parts = [client.get(f"{API}/face-crops/", params={"limit": 5, "offset": o}).json() for o in (0, 5, 10, 15)]
    assert [crop["id"] for part in parts for crop in part["results"]] == whole
    assert [(part["total"], len(part["results"])) for part in parts] == [(12, 5), (12, 5), (12, 2), (12, 0)]
    assert results(client, "/face-crops/", offset=2**63 - 1) == []


LISTS = ("/classes/", "/sessions/", "/images/", "/face-crops/", "/students/")


@pytest.mark.parametrize("path", LISTS)
def test_what_a_list_is_asked_for_is_checked(client, path):
    assert client.get(API + path).json() == {"total": 0, "limit": 50, "offset": 0, "results": []}
    for query, allowed in (
        ({"limit": 0}, "1 to 200"),
        ({"limit": 201}, "1 to 200"),
        ({"offset": -1}, "0 to"),
        ({"offset": 2**63}, "0 to"),
        ({"limit": "x"}, "1 to 200"),
        ({"identifed": "true"}, "identifed"),
    ):
        response = client.get(API + path, params=query)
        assert response.status_code == 422
        assert allowed in response.json()["detail"][0]["msg"]


@pytest.mark.parametrize("filter_", ["class_id", "session_id", "image_id", "student_id", "identified"])
def test_a_filter_that_cannot_be_one_is_422(client, filter_):
    for value in ("-1", "x", "9223372036854775808", "\0", "\ud800".encode("utf-8", "surrogatepass")):
        assert client.get(f"{API}/face-crops/", params={filter_: value}).status_code == 422


@pytest.mark.parametrize(
    "path",
    [
        *(f"{kind}999999/" for kind in LISTS),
        *("/classes/999999/attendance/", "/face-crops/999999/image/", "/face-crops/999999/similar/"),
    ],
)
def test_what_is_not_there_is_404(client, school, path):
    response = client.get(API + path)
    assert response.status_code == 404
    assert "999999" in response.json()["detail"]
    assert client.get((API + path).replace("999999", "9223372036854775808")).status_code == 422


# Pictures


@pytest.fixture
def picture(school, database):
    """A face crop with a picture, and the picture's bytes."""
    crop = school.crops["s1", 0, "Ada"]
    store = PhotoStore.from_settings(get_settings())
    path = store.write_crop("Math101/s1/ada", np.zeros((9, 9, 3), np.uint8))
    with database.connection() as connection:
        connection.execute("UPDATE face_crops SET crop_path = %s WHERE id = %s", [path, crop])
    return crop, store.read_crop(path)


def test_a_picture_is_served_by_the_id_of_its_crop_and_kept_by_nobody(client, picture):
    crop, jpeg = picture
    response = client.get(f"{API}/face-crops/{crop}/image/")
    assert response.status_code == 200
    assert response.content == jpeg
    assert response.headers["content-type"] == "image/jpeg"
    assert response.headers["cache-control"] == "private, no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_crop_without_a_picture_is_404(client, school, picture, database):
    crop, _ = picture
    without = school.crops["s1", 0, "Bob"]
    assert client.get(f"{API}/face-crops/{without}/image/").status_code == 404
    with database.connection() as connection:
        connection.execute("UPDATE face_crops SET crop_path = 'Math101/s1/gone.jpg' WHERE id = %s", [crop])
    response = client.get(f"{API}/face-crops/{crop}/image/")
    assert response.status_code == 404
    assert "gone.jpg" not in response.text


def test_a_stored_path_that_leads_out_of_the_store_is_never_read(client, picture, database, home):
    crop, _ = picture
    (home / "secret.jpg").write_bytes(b"secret")
    for path in ("../secret.jpg", str(home / "secret.jpg"), "Math101/../../secret.jpg"):
        with database.connection() as connection:
            connection.execute("UPDATE face_crops SET crop_path = %s WHERE id = %s", [path, crop])
        response = client.get(f"{API}/face-crops/{crop}/image/")
        assert response.status_code in (404, 503)
        assert response.content != b"secret"


def test_a_picture_that_is_there_and_cannot_be_read_is_503_without_the_folders_of_the_server(
    client, picture, database, home
):
    crop, _ = picture
    (get_settings().crops_folder / "Math101" / "s1" / "folder.jpg").mkdir()
    with database.connection() as connection:
        connection.execute("UPDATE face_crops SET crop_path = 'Math101/s1/folder.jpg' WHERE id = %s", [crop])
    response = client.get(f"{API}/face-crops/{crop}/image/")
    assert response.status_code == 503
    assert str(home) not in response.text


FILES = [
    "/face-crops/../../../etc/passwd",
    "/face-crops/..%2f..%2f..%2fetc%2fpasswd/image/",
    "/face-crops/Math101%2Fs1%2Fada.jpg/image/",
    "/face-crops/1/image/../../../../etc/passwd",
    "/face-crops/%2e%2e/image/",
    "/face-crops/1%00/image/",
    "/face-crops/1/image/ada.jpg",
    "/crops/Math101/s1/ada.jpg",
    "//etc/passwd",
]


def test_no_path_leads_to_a_file_by_name(client, picture):
    for path in FILES:
        response = client.get(API + path)
        assert response.status_code in (404, 422)
        assert response.headers["content-type"] == "application/json"
