"""What people decide, over HTTP."""

import pytest
from fastapi.testclient import TestClient

from pipelines.api.app import create_app
from pipelines.services.decisions import DecisionService
from pipelines.settings import get_settings

API = "/api/attendance"
DLIB = {"embedding_model": "dlib"}


def test_a_student_is_renamed_and_no_longer_provisional(client, school):
    client.post(f"{API}/classes/{school.class_id}/cluster-crops/", json={**DLIB, "include_identified": True})
    (eve,) = client.get(f"{API}/students/?provisional=true").json()["results"]
    renamed = client.patch(f"{API}/students/{eve['id']}/", json={"name": " Eve O'Hara, 伊芙 "})
    assert renamed.status_code == 200
    answer = renamed.json()
    assert answer.pop("decision_id") > 0
    assert answer == {**eve, "name": "Eve O'Hara, 伊芙", "provisional": False}
    assert client.get(f"{API}/students/{eve['id']}").json() == answer


def test_a_name_that_another_student_has_is_409(client, school):
    response = client.patch(f"{API}/students/{school.students['Bob']}/", json={"name": "Ada"})
    assert response.status_code == 409
    assert "merge" in response.json()["detail"]


NAMES = ["", "  ", "a\nb", "\0", "\x85", "\u2028", "x" * 201, 5, None, ["Ada"]]


def test_a_name_that_cannot_be_one_is_422(client, school):
    for name in NAMES:
        response = client.patch(f"{API}/students/{school.students['Bob']}/", json={"name": name})
        assert response.status_code == 422, repr(name)
        assert response.json()["detail"][0]["loc"] == ["body", "name"]


def test_a_crop_is_assigned_taken_back_and_rejected(client, school):
    crop, ada, bob = school.crops["s1", 0, "Ada"], school.students["Ada"], school.students["Bob"]
    path = f"{API}/face-crops/{crop}"
    assigned = client.put(f"{path}/student", json={"student_id": bob, "reason": "the teacher\nsays so"}).json()
    assert (assigned["student_id"], assigned["confirmed"], assigned["decided_by"]) == (bob, True, "person")
    taken = client.request("DELETE", f"{path}/student/").json()
    assert (taken["student_id"], taken["confirmed"], taken["state"]) == (None, False, "no_match")
    rejected = client.post(f"{path}/reject/", json={"student_id": ada})
    assert rejected.status_code == 200
    # What a person has said is honoured by what runs later.
    client.post(f"{API}/sessions/{school.sessions['s1']}/assign-crops/", json=DLIB)
    assert client.get(f"{path}/").json()["student_id"] is None


def test_decisions_are_kept_with_who_and_why(client, school, database):
    crop, ada = school.crops["s1", 0, "Ada"], school.students["Ada"]
    client.put(f"{API}/face-crops/{crop}/student/", json={"student_id": ada, "reason": "seen"})
    client.delete(f"{API}/face-crops/{crop}/student/", params={"reason": "mistaken"})
    with database.connection() as connection:
        kept = connection.execute(
            "SELECT kind, decided_by, reason FROM decisions WHERE crop_id = %s ORDER BY id", [crop]
        ).fetchall()
    assert kept == [("assign", "api", "seen"), ("unassign", "api", "mistaken")]


def test_merged_students_are_one(client, school):
    ada, bob = school.students["Ada"], school.students["Bob"]
    kept = client.post(f"{API}/students/{bob}/merge/", json={"into_student_id": ada})
    assert kept.status_code == 200
    assert (kept.json()["id"], kept.json()["face_crop_count"]) == (ada, 2)
    assert [student["id"] for student in client.get(f"{API}/students/").json()["results"]] == [ada]
    gone = client.get(f"{API}/students/{bob}/")
    assert gone.status_code == 404
    assert str(ada) in gone.json()["detail"]
    assert client.post(f"{API}/students/{ada}/merge/", json={"into_student_id": ada}).status_code == 409


def test_a_student_of_another_class_is_409(client, school, embedded_class):
    zoe = embedded_class.enrol("Other", "Zoe")["Zoe"]
    crop = school.crops["s1", 0, "Ada"]
    assert client.put(f"{API}/face-crops/{crop}/student/", json={"student_id": zoe}).status_code == 409
    assert client.post(f"{API}/face-crops/{crop}/reject/", json={"student_id": zoe}).status_code == 409
    assert (
        client.post(f"{API}/students/{zoe}/merge/", json={"into_student_id": school.students["Ada"]}).status_code == 409
    )


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/students/{}/", {"name": "Zoe"}),
        ("POST", "/students/{}/merge/", {"into_student_id": 999_999}),
        ("PUT", "/face-crops/{}/student/", {"student_id": 999_999}),
        ("DELETE", "/face-crops/{}/student/", None),
        ("POST", "/face-crops/{}/reject/", {"student_id": 999_999}),
        ("POST", "/students/{}/confirm-crops/", {"crop_ids": [999_999]}),
        ("POST", "/face-crops/not-a-face/", {"crop_ids": [999_999]}),
        ("POST", "/students/{}/split/", {"crop_ids": [999_999]}),
    ],
)
def test_edits_of_what_is_not_there_and_bodies_that_cannot_be(client, school, method, path, body):
    assert client.request(method, API + path.format(999_999), json=body).status_code == 404
    if body:
        there = school.students["Ada"] if "students" in path else school.crops["s1", 0, "Ada"]
        if "name" not in body:
            assert client.request(method, API + path.format(there), json=body).status_code == 404
        for wrong in ({}, {**body, "other": 1}, [], dict.fromkeys(body, 2**63), dict.fromkeys(body, True)):
            assert client.request(method, API + path.format(there), json=wrong).status_code == 422
        assert client.request(method, API + path.format(there)).status_code == 422


@pytest.mark.parametrize("reason", ["\0", "x" * 2001, 5])
def test_a_reason_that_cannot_be_kept_is_422(client, school, reason):
    body = {"student_id": school.students["Ada"], "reason": reason}
    response = client.put(f"{API}/face-crops/{school.crops['s1', 0, 'Ada']}/student/", json=body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "reason"]


def test_a_decision_about_a_merged_student_is_answered_with_the_one_who_is_kept(client, school, embedded_class):
    ada, bob = school.students["Ada"], school.students["Bob"]
    assert client.post(f"{API}/students/{bob}/merge/", json={"into_student_id": ada}).status_code == 200
    renamed = client.patch(f"{API}/students/{bob}/", json={"name": "Ada Lovelace"})
    assert (renamed.status_code, renamed.json()["id"], renamed.json()["name"]) == (200, ada, "Ada Lovelace")
    zoe = embedded_class.enrol("Math101", "Zoe")["Zoe"]
    merged = client.post(f"{API}/students/{zoe}/merge/", json={"into_student_id": bob})
    assert (merged.status_code, merged.json()["id"]) == (200, ada)


def edits_of(crop, student):
    """Method, path, body, and the service's method, of each decision about a crop."""
    path = f"{API}/face-crops/{crop}"
    return [
        ("PUT", f"{path}/student/", {"student_id": student}, "assign"),
        ("DELETE", f"{path}/student/", None, "unassign"),
        ("POST", f"{path}/reject/", {"student_id": student}, "reject"),
    ]


@pytest.mark.parametrize("change", ["removed_at = now()", "refused_reason = 'torn'"])
def test_a_crop_of_a_photo_that_is_gone_is_404_and_nothing_is_stored(client, school, database, change):
    crop = school.crops["s1", 0, "Ada"]
    with database.connection() as connection:
        connection.execute(f"UPDATE images SET {change}")
    for method, path, body, _ in edits_of(crop, school.students["Ada"]):
        assert client.request(method, path, json=body).status_code == 404
    with database.connection() as connection:
        assert connection.execute("SELECT count(*) FROM decisions WHERE crop_id = %s", [crop]).fetchone() == (0,)


def test_a_decision_that_is_stored_is_answered_though_the_photo_went_away_meanwhile(
    client, school, database, monkeypatch
):
    crop = school.crops["s1", 0, "Ada"]
    for method, path, body, name in edits_of(crop, school.students["Ada"]):
        with database.connection() as connection:
            connection.execute("UPDATE images SET removed_at = NULL")
        real = getattr(DecisionService, name)

        def then_removed(*arguments, real=real):
            answer = real(*arguments)
            with database.connection() as connection:
                connection.execute("UPDATE images SET removed_at = now()")
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(DecisionService, name, then_removed)
            response = client.request(method, path, json=body)
        assert (response.status_code, response.json()["id"]) == (200, crop)


def test_the_reason_of_a_rejection_is_kept(client, school, database):
    crop, ada = school.crops["s1", 0, "Ada"], school.students["Ada"]
    client.post(f"{API}/face-crops/{crop}/reject/", json={"student_id": ada, "reason": "her sister"})
    with database.connection() as connection:
        kept = connection.execute("SELECT kind, reason FROM decisions WHERE crop_id = %s", [crop]).fetchall()
    assert kept == [("not_this_student", "her sister")]


def test_an_unknown_name_in_the_query_of_an_edit_is_422_and_nothing_is_done(client, school):
    ada = school.students["Ada"]
    for method, path, body in (
        ("PATCH", f"/students/{ada}/?nme=x", {"name": "Zoe"}),
        ("DELETE", f"/face-crops/{school.crops['s1', 0, 'Ada']}/student/?reson=x", None),
    ):
        response = client.request(method, API + path, json=body)
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"][0] == "query"
    assert client.get(f"{API}/students/{ada}/").json()["name"] == "Ada"


def log_of(client, school) -> list[dict]:
    return client.get(f"{API}/decisions/?class_id={school.class_id}").json()["results"]


def test_every_answer_to_a_decision_has_its_id_which_can_be_undone(client, school):
    ada, bob = school.students["Ada"], school.students["Bob"]
    crop, other = school.crops["s1", 0, "Ada"], school.crops["s1", 1, "Ada"]
    session = school.sessions["s1"]
    for method, path, body, sentence in (
        ("PUT", f"/face-crops/{crop}/student/", {"student_id": ada}, f"Face {crop} is Ada."),
        ("DELETE", f"/face-crops/{crop}/student/", None, f"Face {crop} is to have no name."),
        ("POST", f"/face-crops/{crop}/reject/", {"student_id": bob}, f"Face {crop} is not Bob."),
        ("POST", f"/face-crops/{crop}/not-a-face/", {"reason": "a poster"}, f"Face {crop} is no face."),
        ("POST", f"/face-crops/{crop}/not-a-face/", None, f"Face {crop} is no face."),
        ("POST", "/face-crops/not-a-face/", {"crop_ids": [crop], "reason": "a poster"}, f"Face {crop} is no face."),
        ("POST", "/face-crops/not-a-face/", {"crop_ids": [crop, other]}, "2 faces are no face."),
        ("POST", f"/students/{ada}/confirm-crops/", {"crop_ids": [crop, other]}, "2 faces are Ada."),
        ("PATCH", f"/students/{ada}/", {"name": "Ada L"}, "Ada is called Ada L."),
        ("POST", f"/students/{bob}/merge/", {"into_student_id": ada}, "Bob and Ada are one: Ada."),
        ("POST", f"/students/{bob}/hide/", None, "Bob is a visitor."),
        (
            "PUT",
            f"/sessions/{session}/attendance/{bob}/",
            {"status": "excused", "note": "ill"},
            "Bob was excused in s1.",
        ),
        ("PUT", f"/sessions/{session}/attendance/{bob}/", {"status": None}, "The photos say whether Bob was in s1."),
    ):
        response = client.request(method, API + path, json=body)
        assert response.status_code == 200, response.text
        newest = log_of(client, school)[0]
        assert (newest["id"], newest["sentence"]) == (response.json()["decision_id"], sentence)
        assert (newest["decided_by"], newest["in_force"], newest["can_be_undone"]) == ("api", True, True)
        undone = client.post(f"{API}/decisions/{newest['id']}/undo/", json={"reason": "a slip"})
        assert (undone.status_code, undone.json()["undone"]) == (200, sentence)
        undo, before = log_of(client, school)[:2]
        assert undo["sentence"] == f"Decision {newest['id']} is undone: {sentence}"
        assert (undo["id"], undo["undoes"], undo["reason"]) == (undone.json()["decision_id"], newest["id"], "a slip")
        assert (before["in_force"], before["undone_by"], before["can_be_undone"]) == (False, undo["id"], False)
        assert client.post(f"{API}/decisions/{newest['id']}/undo/").status_code == 409
    assert {s["name"] for s in client.get(f"{API}/students/").json()["results"]} == {"Ada", "Bob"}


def test_decisions_are_in_the_name_that_the_application_was_made_with(school):
    app = create_app(get_settings(), decided_by="ann")
    crops = [school.crops["s1", 0, "Ada"], school.crops["s1", 1, "Ada"]]
    with TestClient(app, base_url="http://127.0.0.1") as ann:
        made = ann.post(f"{API}/face-crops/not-a-face/", json={"crop_ids": crops, "reason": "posters"})
        kept = log_of(ann, school)[0]
    assert made.status_code == 200
    assert (kept["decided_by"], kept["reason"], kept["id"]) == ("ann", "posters", made.json()["decision_id"])


def test_faces_are_split_off_their_student_alone(client, school):
    ada, bob = school.students["Ada"], school.students["Bob"]
    crops = [school.crops["s1", 0, "Ada"], school.crops["s1", 1, "Ada"]]
    client.post(f"{API}/students/{ada}/confirm-crops/", json={"crop_ids": crops})
    assert client.post(f"{API}/students/{bob}/split/", json={"crop_ids": crops}).status_code == 409
    split = client.post(f"{API}/students/{ada}/split/", json={"crop_ids": crops, "name": "Eda", "reason": "her twin"})
    assert (split.status_code, split.json()["student_name"], split.json()["crop_ids"]) == (200, "Eda", crops)
    assert client.get(f"{API}/face-crops/{crops[0]}/").json()["student_id"] == split.json()["student_id"]
    assert log_of(client, school)[0]["sentence"] == "2 faces are not Ada but somebody else: Eda."
    assert client.post(f"{API}/decisions/{split.json()['decision_id']}/undo/").status_code == 200
    assert client.get(f"{API}/face-crops/{crops[0]}/").json()["student_id"] == ada


def test_faces_that_show_nobody_are_a_new_student_until_that_is_undone(client, school):
    path, crops = f"{API}/students/", [school.crops["s1", 0, "Eve"], school.crops["s1", 1, "Eve"]]
    created = client.post(path, json={"crop_ids": crops, "name": " Eve ", "reason": "came today"})
    assert created.status_code == 200
    answer = created.json()
    assert (answer["student_name"], answer["crop_ids"]) == ("Eve", crops)
    eve = client.get(f"{path}{answer['student_id']}/").json()
    assert (eve["name"], eve["provisional"], eve["face_crop_count"]) == ("Eve", False, 2)
    said = log_of(client, school)[0]
    assert (said["sentence"], said["reason"], said["crop_ids"]) == (
        "2 faces are somebody new: Eve.",
        "came today",
        crops,
    )
    # Faces of somebody are split off, and a name is one student's.
    assert client.post(path, json={"crop_ids": crops[:1]}).status_code == 409
    assert client.post(path, json={"crop_ids": [school.crops["s1", 0, "Bob"]], "name": "Eve"}).status_code == 409

    undo = client.post(f"{API}/decisions/{answer['decision_id']}/undo/").json()
    assert [client.get(f"{API}/face-crops/{crop}/").json()["student_id"] for crop in crops] == [None, None]
    review = client.get(f"{API}/classes/{school.class_id}/review/").json()
    assert eve["id"] not in {cell["student_id"] for cell in review["cells"]}
    assert "Eve" not in {student["name"] for student in client.get(path).json()["results"]}
    assert client.post(f"{API}/decisions/{undo['decision_id']}/undo/").status_code == 200
    assert client.get(f"{path}{eve['id']}/").json()["name"] == "Eve"
    assert client.get(f"{API}/face-crops/{crops[0]}/").json()["student_id"] == eve["id"]
    # Whom a run takes for her is found: her faces are known.
    client.post(f"{API}/classes/{school.class_id}/assign-crops/", json=DLIB)
    assert client.get(f"{API}/face-crops/{school.crops['s2', 0, 'Eve']}/").json()["student_id"] == eve["id"]


def test_a_new_student_may_have_no_name_yet(client, school):
    crop = school.crops["s1", 0, "Eve"]
    created = client.post(f"{API}/students/", json={"crop_ids": [crop]}).json()
    (eve,) = client.get(f"{API}/students/?provisional=true").json()["results"]
    assert (eve["id"], eve["face_crop_count"]) == (created["student_id"], 1)
    client.post(f"{API}/decisions/{created['decision_id']}/undo/")
    assert client.get(f"{API}/face-crops/{crop}/").json()["student_id"] is None


def test_names_and_merges_have_reasons(client, school):
    ada, bob = school.students["Ada"], school.students["Bob"]
    client.patch(f"{API}/students/{ada}/", json={"name": "Ada L.", "reason": "two Adas"})
    assert log_of(client, school)[0]["reason"] == "two Adas"
    client.post(f"{API}/students/{bob}/merge/", json={"into_student_id": ada, "reason": "twice on the list"})
    assert log_of(client, school)[0]["reason"] == "twice on the list"


def test_the_log_comes_in_pages_of_one_class(client, school):
    path = f"{API}/decisions/"
    assert client.get(path).status_code == 422
    assert client.get(f"{path}?class_id=999999").status_code == 404
    first = client.get(f"{path}?class_id={school.class_id}&limit=1").json()
    second = client.get(f"{path}?class_id={school.class_id}&limit=1&offset=1").json()
    assert (first["total"], len(first["results"])) == (2, 1)
    assert first["results"][0]["id"] > second["results"][0]["id"]
    # What a portrait's file says is taken back by moving the file.
    assert first["results"][0]["can_be_undone"] is False
    response = client.post(f"{path}{first['results'][0]['id']}/undo/")
    assert (response.status_code, "portrait" in response.json()["detail"]) == (409, True)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/decisions/999999/undo/", None, 404),
        ("POST", "/decisions/1/undo/", {"reason": "x" * 2001}, 422),
        ("POST", "/students/{ada}/hide/", {"why": "x"}, 422),
        ("POST", "/students/{ada}/confirm-crops/", {"crop_ids": []}, 422),
        ("POST", "/face-crops/not-a-face/", {"crop_ids": []}, 422),
        ("POST", "/students/{ada}/split/", {"crop_ids": [1], "name": " "}, 422),
        ("POST", "/students/", {"crop_ids": [999_999], "name": "Zoe"}, 404),
        ("POST", "/students/", {"crop_ids": [1], "name": ""}, 422),
        ("POST", "/students/", {"name": "Zoe"}, 422),
        ("PUT", "/sessions/{s1}/attendance/999999/", {"status": "present"}, 404),
        ("PUT", "/sessions/999999/attendance/{ada}/", {"status": "present"}, 404),
        ("PUT", "/sessions/{s1}/attendance/{ada}/", {"status": "late"}, 422),
        ("PUT", "/sessions/{s1}/attendance/{ada}/", {"note": "late"}, 422),
        ("PUT", "/sessions/{enrol}/attendance/{ada}/", {"status": "present"}, 409),
    ],
)
def test_decisions_that_cannot_be(client, school, method, path, body, status):
    path = path.format(ada=school.students["Ada"], **school.sessions)
    assert client.request(method, API + path, json=body).status_code == status
