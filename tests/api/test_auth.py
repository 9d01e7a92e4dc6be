"""Who is served: with a token who has it, without one who is on this machine."""

import pytest
from pydantic import SecretStr

from pipelines.api.server import ServeError, run_api
from pipelines.settings import Settings

API = "/api/attendance"
TOKEN = "päss word"  # what a header carries as bytes


@pytest.fixture
def guarded(serve):
    """The application with a token, under a name of its own."""
    return serve(base_url="http://attendansee.example", api_token=SecretStr(TOKEN))


def bearer(token):
    return {"authorization": b"Bearer " + token.encode()}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Basic cGFzcw=="},
        bearer("p"),
        bearer(TOKEN + "x"),
        {"authorization": TOKEN.encode()},
        {"authorization": b"Bearer \xff\xfe"},
    ],
)
def test_without_the_token_everything_is_401(guarded, headers):
    for path in ("/classes/", "/classes", "/face-crops/1/image/", "/nowhere", "/classes/x/"):
        response = guarded.get(API + path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert TOKEN not in response.text


def test_a_body_is_not_looked_at_without_the_token(guarded):
    assert guarded.post(f"{API}/face-crops/1/assign/", content=b"{").status_code == 401


def test_with_the_token_everything_is_served(guarded, school):
    for scheme in (b"Bearer ", b"bearer "):
        response = guarded.get(f"{API}/classes/", headers={"authorization": scheme + TOKEN.encode()})
        assert response.status_code == 200
    answer = guarded.post(
        f"{API}/face-crops/{school.crops['s1', 0, 'Ada']}/assign/",
        json={"embedding_model": "dlib"},
        headers=bearer(TOKEN),
    )
    assert answer.json()["student_name"] == "Ada"
    assert guarded.get(f"{API}/nowhere/", headers=bearer(TOKEN)).status_code == 404


def test_the_description_is_public_and_says_that_a_token_is_needed(guarded, client):
    described = guarded.get("/openapi.json")
    assert described.status_code == 200
    operation = described.json()["paths"][f"{API}/classes/"]["get"]
    assert operation["security"] == [{"token": []}]
    assert guarded.get("/docs").status_code == 200
    assert "security" not in client.get("/openapi.json").json()["paths"][f"{API}/classes/"]["get"]


# Without a token


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:9", "127.0.0.2:8000", "127.0.1.1", "[::1]:8000", "[::1]"]
)
def test_programs_on_this_machine_are_served(client, host):
    assert client.get(f"{API}/classes/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "192.168.1.2", "[::2]", "", "@"]
)
def test_a_page_whose_name_points_at_this_machine_is_not_served(client, host):
    for path in (f"{API}/classes/", "/docs", "/openapi.json"):
        response = client.get(path, headers={"host": host})
        assert response.status_code == 403
        assert "ATTENDANSEE_API_TOKEN" in response.json()["detail"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9", "http://localhost:8000", "x"])
def test_a_page_of_another_origin_changes_nothing(client, school, origin):
    path = f"{API}/classes/{school.class_id}/cluster-crops/"
    assert client.post(path, headers={"origin": origin}).status_code == 403


def test_a_page_of_ours_is_served(client):
    assert client.get(f"{API}/classes/", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200


@pytest.mark.parametrize("token", ["", " \n"])
def test_an_empty_token_is_none(serve, token):
    served = serve(api_token=SecretStr(token))
    assert served.get(f"{API}/classes/").status_code == 200
    assert served.get(f"{API}/classes/", headers={"host": "evil.example"}).status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_machines_are_served_with_a_token_only(tmp_path, host):
    with pytest.raises(ServeError, match="ATTENDANSEE_API_TOKEN"):
        run_api(Settings(home=tmp_path), host=host, port=0)
    with pytest.raises(ServeError, match="ATTENDANSEE_API_TOKEN"):
        run_api(Settings(home=tmp_path, api_token=SecretStr("")), host=host, port=0)
    with pytest.raises(ServeError, match="ATTENDANSEE_API_TOKEN"):
        run_api(Settings(home=tmp_path, api_token=SecretStr(" \t\r\n")), host=host, port=0)
    assert list(tmp_path.iterdir()) == []


def test_a_token_is_known_without_the_line_end_of_its_file(serve):
    served = serve(base_url="http://attendansee.example", api_token=SecretStr(f" {TOKEN}\n"))
    assert served.get(f"{API}/classes/", headers=bearer(TOKEN)).status_code == 200


def test_a_token_is_never_shown(guarded, caplog):
    settings = Settings(api_token=SecretStr(TOKEN))
    assert TOKEN not in repr(settings) + str(settings) + settings.model_dump_json()
    guarded.get(f"{API}/classes/", headers=bearer(TOKEN + "x"))
    assert TOKEN not in caplog.text


def test_every_answer_tells_browsers_to_keep_and_guess_nothing(client, guarded):
    for response in (
        client.get(f"{API}/classes/"),
        client.get(f"{API}/classes/1/"),
        client.get(f"{API}/classes/", headers={"host": "evil.example"}),
        guarded.get(f"{API}/classes/"),
        client.get("/docs"),
    ):
        assert response.headers["cache-control"] == "private, no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "access-control-allow-origin" not in response.headers
