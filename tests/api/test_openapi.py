"""The description of the API, for programs and for people."""

import re
from html.parser import HTMLParser

from pipelines.services.parameters import (
    AssignmentParameters,
    BatchEmbeddingParameters,
    ClassClusteringParameters,
    ClusteringParameters,
    EmbeddingParameters,
)

API = "/api/attendance"

OPERATIONS = {
    "/face-crops/{id}/generate-embedding/": EmbeddingParameters,
    "/face-crops/generate-embeddings-batch/": BatchEmbeddingParameters,
    "/sessions/{id}/cluster-crops/": ClusteringParameters,
    "/classes/{id}/cluster-crops/": ClassClusteringParameters,
    "/face-crops/{id}/assign/": AssignmentParameters,
    "/sessions/{id}/assign-crops/": AssignmentParameters,
    "/classes/{id}/assign-crops/": AssignmentParameters,
}


def test_the_operations_have_the_original_paths_and_the_parameters_of_the_jobs(client):
    openapi = client.get("/openapi.json").json()
    for path, kind in OPERATIONS.items():
        body = openapi["paths"][API + path]["post"]["requestBody"]
        assert body.get("required", False) == (kind is BatchEmbeddingParameters)
        name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert name == kind.__name__
        fields = openapi["components"]["schemas"][name]["properties"]
        assert fields.keys() == kind.model_fields.keys()
        for field in fields.values():
            assert field["description"]


def test_every_operation_is_described_and_documents_its_errors(client):
    openapi = client.get("/openapi.json").json()
    operations = [(path, o) for path, item in openapi["paths"].items() for o in item.values()]
    assert len({operation["operationId"] for _, operation in operations}) == len(operations) == 35
    for path, operation in operations:
        assert re.fullmatch(r"[a-z_]+", operation["operationId"])
        assert operation["summary"]
        assert operation["description"]
        assert operation["tags"]
        assert {"200", "401", "403", "422", "503"} <= operation["responses"].keys()
        # Decisions are listed of one class; the faces that are none, or a new student's, are named in the body.
        of_one = "{id}" in path or operation["operationId"] in ("list_decisions", "mark_not_faces", "create_student")
        assert ("404" in operation["responses"]) == of_one


def test_no_bound_is_beyond_the_largest_id(client):
    found = re.findall(r'"maximum":([^,}]+)', client.get("/openapi.json").text)
    assert "9223372036854775807" in found
    assert all("e" not in bound and int(float(bound)) <= 2**63 for bound in found)


class Page(HTMLParser):
    """What a browser would load besides the page, and the page's text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.loads, self.text = set(), [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_for_people_needs_no_script_and_no_network(client):
    response = client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    page = Page()
    page.feed(response.text)
    assert "script" not in page.tags
    assert page.loads == ["/openapi.json"]
    for path in OPERATIONS:
        assert f"POST {API}{path}" in page.text
    for words in ("max_clusters", "integer, 1 to 200", "similarity_threshold", "0.6", "students_created", "required"):
        assert words in page.text


def test_a_whole_number_may_be_written_with_a_point(client, school):
    body = {"embedding_model": "dlib", "k": 5.0, "similarity_threshold": 0}
    crop = school.crops["s1", 0, "Ada"]
    assert client.post(f"{API}/face-crops/{crop}/assign/", json=body).status_code == 200
    assert client.post(f"{API}/face-crops/{crop}/assign/", json={**body, "k": 5.5}).status_code == 422
    assert client.post(f"{API}/face-crops/{crop}/assign/", json={**body, "k": "5"}).status_code == 422
    batch = {"model_name": "dlib", "face_crop_ids": [float(crop)]}
    assert client.post(f"{API}/face-crops/generate-embeddings-batch/", json=batch).json()["skipped"] == 1


def test_another_method_is_405_with_those_that_there_are(client):
    for method, path, allowed in (
        ("GET", "/face-crops/generate-embeddings-batch/", "POST"),
        ("OPTIONS", "/face-crops/1/student/", "DELETE, PUT"),
        ("DELETE", "/students/1", "GET, PATCH"),
    ):
        response = client.request(method, API + path)
        assert (response.status_code, response.headers["allow"]) == (405, allowed)
    for path in ("/docs", "/openapi.json"):
        response = client.post(path)
        assert (response.status_code, response.headers["allow"]) == (405, "GET")
