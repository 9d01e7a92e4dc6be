"""The review page's files and what it reads of a class; the page itself is driven in a browser by test_review_page.py."""

import re
from importlib.resources import files

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from pydantic import SecretStr

from pipelines.api import server
from pipelines.cli import main

API = "/api/attendance"
PAGES = files("pipelines.api") / "pages"
NAMES = sorted(entry.name for entry in PAGES.iterdir())


@pytest.fixture
def processed(client, school, process_class):
    """The class after a run: Ada and Bob are known, Eve is somebody without a name."""
    process_class("dlib", "Math101")
    return school


def review_of(client, school) -> dict:
    response = client.get(f"{API}/classes/{school.class_id}/review/")
    assert response.status_code == 200, response.text
    return response.json()


def test_the_review_has_students_register_evidence_and_questions(client, processed):
    review = review_of(client, processed)
    assert (review["class_name"], review["model"]) == ("Math101", "dlib")
    assert [session["name"] for session in review["sessions"]] == ["s1", "s2"]
    ada, bob = processed.students["Ada"], processed.students["Bob"]
    students = {student["student_id"]: student for student in review["students"]}
    assert [students[i]["kind"] for i in (ada, bob)] == ["student", "student"]
    assert len(students[ada]["portrait_ids"]) == 1
    (eve,) = [student for student in review["students"] if student["kind"] == "unknown"]
    statuses = {(cell["student_id"], cell["session_id"]): cell["status"] for cell in review["cells"]}
    for session_id in (processed.sessions["s1"], processed.sessions["s2"]):
        assert (statuses[ada, session_id], statuses[bob, session_id]) == ("present", "present")
        assert statuses[eve["student_id"], session_id] == "unknown"
    assert all(cell["why"] for cell in review["cells"])
    (question,) = review["questions"]
    assert (question["kind"], question["student_id"], len(question["cells"])) == ("who", eve["student_id"], 2)
    assert review["left"] == 1


def test_the_review_says_what_people_are_called_and_what_was_said_of_them(client, processed):
    (eve,) = [student for student in review_of(client, processed)["students"] if student["kind"] == "unknown"]
    assert (eve["label"], eve["first_seen"], eve["history"]) == (f"Unnamed person {eve['student_id']}", "s1", [])
    bob = processed.students["Bob"]
    url = f"{API}/face-crops/{eve['crop_ids'][0]}/reject/"
    answer = client.post(url, json={"student_id": bob, "reason": "a cousin"})
    assert answer.status_code == 200, answer.text
    client.patch(f"{API}/students/{bob}/", json={"name": "Robert", "reason": "his passport"})
    review = review_of(client, processed)
    (robert,) = [student for student in review["students"] if student["student_id"] == bob]
    assert robert["label"] == "Robert"
    assert re.fullmatch(r"On [\d-]+ .+ gave Bob the name Robert: his passport\.", robert["history"][0])
    faces = {face["crop_id"]: face for face in review["faces"]}
    assert re.search(r" said on [\d-]+ that this is not Robert: a cousin\.", faces[eve["crop_ids"][0]]["why"])


def test_every_face_that_is_named_is_there_with_its_reason(client, processed):
    review = review_of(client, processed)
    faces = {face["crop_id"]: face for face in review["faces"]}
    named = {
        crop_id
        for part in (*review["students"], *review["questions"], *review["cells"])
        for name in ("crop_ids", "portrait_ids", "doubtful_ids")
        for crop_id in part.get(name, [])
    }
    assert set(processed.crops.values()) <= named <= faces.keys()
    assert all(face["why"] for face in faces.values())
    crop = processed.crops["s1", 0, "Ada"]
    assert (faces[crop]["state"], faces[crop]["confirmed"]) == ("sure", False)
    client.put(f"{API}/face-crops/{crop}/student/", json={"student_id": processed.students["Ada"]})
    (face,) = [face for face in review_of(client, processed)["faces"] if face["crop_id"] == crop]
    assert (face["state"], face["confirmed"], face["similarity"]) == ("sure", True, None)


def test_an_answer_is_seen_in_the_next_review(client, processed):
    (question,) = review_of(client, processed)["questions"]
    named = client.patch(f"{API}/students/{question['student_id']}/", json={"name": "Eve"})
    assert named.status_code == 200
    review = review_of(client, processed)
    assert (review["left"], review["questions"]) == (0, [])
    assert {student["name"] for student in review["students"]} == {"Ada", "Bob", "Eve"}


def test_a_long_answer_is_compressed_for_who_takes_it(client):
    long, short = "/openapi.json", f"{API}/classes/"
    assert client.get(long).headers["content-encoding"] == "gzip"
    assert "content-encoding" not in client.get(long, headers={"accept-encoding": "identity"}).headers
    assert "content-encoding" not in client.get(short).headers


def test_a_class_before_its_first_run_has_nothing_to_ask(client, school):
    review = review_of(client, school)
    assert (review["cells"], review["questions"], review["left"]) == ([], [], 0)


def test_a_class_that_is_not_there_is_404(client, school):
    response = client.get(f"{API}/classes/999999/review/")
    assert response.status_code == 404
    assert "999999" in response.json()["detail"]


def test_no_vector_and_no_path_of_a_picture_is_in_the_review(client, processed):
    text = client.get(f"{API}/classes/{processed.class_id}/review/").text
    assert "crop_path" not in text
    assert "embedding" not in text
    assert len(text) < 20_000


def test_the_page_may_load_its_own_files_and_nothing_else(client):
    response = client.get("/review/Math101")
    assert response.headers["content-type"].startswith("text/html")
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert (policy["script-src"], policy["style-src"], policy["connect-src"]) == ("'self'",) * 3
    assert policy["img-src"] == "blob: data:"
    assert policy["frame-ancestors"] == "'none'"
    loaded = re.findall(r'(?:src|href)="([^"#]+)"', response.text)
    assert sorted(loaded) == ["data:,", "files/review.css", "files/review.js"]
    # A style or script in the page itself would not be run.
    assert not re.search(r"<style|<script>|\sstyle=|\son[a-z]+=", response.text)
    for name in loaded[1:]:
        assert client.get(f"/review/{name}").status_code == 200


def test_every_file_is_served_with_its_type_and_kept_by_nobody(client):
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
    assert {"review.html", "review.css", "review.js"} <= set(NAMES)
    for name in NAMES:
        response = client.get(f"/review/files/{name}")
        assert response.content == (PAGES / name).read_bytes()
        assert response.headers["content-type"].partition(";")[0] == types[name.rpartition(".")[2]]
        assert response.headers["cache-control"] == "private, no-store"
        assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["other.js", "..%2Fapp.py", "%2e%2e/app.py", "review.js/", "__init__.py"])
def test_no_other_file_is_served(client, name):
    response = client.get(f"/review/files/{name}")
    assert response.status_code == 404
    assert "create_app" not in response.text


def test_every_module_that_a_script_imports_is_served():
    for name in NAMES:
        for imported in re.findall(r'from "([^"]+)"', (PAGES / name).read_text()):
            assert imported.removeprefix("./") in NAMES, f"{name} imports {imported}"


def test_all_other_answers_keep_the_strict_policy(client, processed):
    for path in ("/docs", f"{API}/classes/", f"{API}/classes/{processed.class_id}/review/"):
        policy = client.get(path).headers["content-security-policy"]
        assert "script-src" not in policy
        assert "default-src 'none'" in policy


def test_with_a_token_the_page_is_public_and_what_it_reads_is_not(serve, school):
    guarded: TestClient = serve(base_url="https://school.example", api_token=SecretStr("a-token"))
    assert guarded.get("/review/Math101").status_code == 200
    assert guarded.get("/review/files/review.js").status_code == 200
    # The page of a class that is not there is the same: it tells nobody which classes there are.
    assert guarded.get("/review/Nothing").text == guarded.get("/review/Math101").text
    review, image = (
        f"{API}/classes/{school.class_id}/review/",
        f"{API}/face-crops/{school.crops['s1', 0, 'Ada']}/image/",
    )
    assert [guarded.get(path).status_code for path in (review, image)] == [401, 401]
    assert guarded.get(review, headers={"authorization": "Bearer a-token"}).status_code == 200


def test_without_a_token_the_page_is_for_this_machine_alone(client):
    assert client.get("/review/Math101", headers={"host": "evil.example"}).status_code == 403


def test_the_command_serves_the_api_and_says_where_the_page_is(school, monkeypatch):
    served = {}

    def run_api(settings, host="127.0.0.1", port=8000, *, decided_by, serving):
        served.update(host=host, port=port, decided_by=decided_by)
        serving(f"http://{host}:{port}")

    monkeypatch.setattr(server, "run_api", run_api)
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    result = CliRunner().invoke(main, ["review", "Math101", "--port", "8123"], catch_exceptions=False)
    assert (result.exit_code, served) == (0, {"host": "127.0.0.1", "port": 8123, "decided_by": "ann"})
    assert result.stdout == "Review page: http://127.0.0.1:8123/review/Math101 (Ctrl-C stops it)\n"


def test_the_command_knows_a_class_that_is_not_there(school):
    result = CliRunner().invoke(main, ["review", "Nothing"])
    assert result.exit_code == 1
    assert "Nothing" in result.stderr
