"""The API beside Dagster: a class that a run is processing, and jobs that are launched instead of run."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import dagster as dg
import pytest

from pipelines.api import dagster_runs
from pipelines.instance import PROCESS_TAG, prepare_dagster_home
from pipelines.partitions import sessions
from pipelines.settings import PROJECT_ROOT, get_settings

API = "/api/attendance"
DLIB = {"embedding_model": "dlib"}


@pytest.fixture
def instance(database, tmp_path, monkeypatch):
    """A Dagster instance of the test's own home."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("ATTENDANSEE_HOME", str(tmp_path))
    get_settings.cache_clear()
    home = prepare_dagster_home(get_settings())
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance
        for run in instance.get_runs():
            instance.delete_run(run.run_id)


def begin(instance, status=dg.DagsterRunStatus.STARTED, **tags):
    run = dg.DagsterRun(
        job_name="any", status=status, tags={name.replace("__", "/"): tag for name, tag in tags.items()}
    )
    return instance.add_run(run).run_id


TAGS = [
    {"dagster__partition": "Math101__s1"},
    {"dagster__partition": "Math101"},
    {"attendansee__class": "Math101"},
    {
        "dagster__asset_partition_range_start": "Art1__s9",
        "dagster__asset_partition_range_end": "Zoo1__s1",
    },
]


@pytest.mark.parametrize("tags", TAGS, ids=lambda tags: next(iter(tags)))
def test_a_class_that_a_run_is_processing_is_409_until_it_ends(serve, school, instance, tags):
    instance.add_dynamic_partitions(sessions.name, ["Art1__s9", "Math101__s1", "Zoo1__s1", "Math101__s2"])
    client = serve()
    run_id = begin(instance, **tags)
    crop, ada, bob = school.crops["s1", 0, "Ada"], school.students["Ada"], school.students["Bob"]
    calls = [
        ("POST", f"/classes/{school.class_id}/cluster-crops/", DLIB),
        ("POST", f"/classes/{school.class_id}/assign-crops/", DLIB),
        ("POST", f"/sessions/{school.sessions['s1']}/cluster-crops/", DLIB),
        ("POST", f"/sessions/{school.sessions['s1']}/assign-crops/?run=dagster", DLIB),
        ("POST", f"/face-crops/{crop}/assign/", DLIB),
        ("POST", f"/face-crops/{crop}/generate-embedding/", {"model_name": "dlib"}),
        ("POST", "/face-crops/generate-embeddings-batch/", {"model_name": "dlib", "face_crop_ids": [999_999, crop]}),
        ("PUT", f"/face-crops/{crop}/student/", {"student_id": ada}),
        ("DELETE", f"/face-crops/{crop}/student/", None),
        ("POST", f"/face-crops/{crop}/reject/", {"student_id": ada}),
        ("PATCH", f"/students/{ada}/", {"name": "Ada Lovelace"}),
        ("POST", f"/students/{bob}/merge/", {"into_student_id": ada}),
        ("POST", "/face-crops/not-a-face/", {"crop_ids": [crop]}),
    ]
    for method, path, body in calls:
        response = client.request(method, API + path, json=body)
        assert response.status_code == 409, path
        assert run_id in response.json()["detail"]
    assert client.get(f"{API}/students/").json()["total"] == 2
    assert client.post(f"{API}/face-crops/999999/assign/", json=DLIB).status_code == 404
    assert client.patch(f"{API}/students/999999/", json={"name": "Zoe"}).status_code == 404
    instance.report_run_failed(instance.get_run_by_id(run_id))
    time.sleep(dagster_runs.FRESH_S)
    for method, path, body in calls:
        if "run=dagster" not in path:
            assert client.request(method, API + path, json=body).status_code == 200, path


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING])
def test_a_run_that_begins_or_is_being_ended_holds_its_class_too(serve, school, instance, status):
    begin(instance, status, attendansee__class="Math101")
    assert serve().post(f"{API}/classes/{school.class_id}/assign-crops/", json=DLIB).status_code == 409


def test_calls_at_once_ask_dagster_once(serve, school, instance, monkeypatch):
    asked = []
    real = dagster_runs.DagsterRuns._processing
    monkeypatch.setattr(dagster_runs, "FRESH_S", 60)
    monkeypatch.setattr(dagster_runs.DagsterRuns, "_processing", lambda runs: asked.append(1) or real(runs))
    client = serve()
    for crop in school.crops.values():
        assert client.post(f"{API}/face-crops/{crop}/assign/", json=DLIB).status_code == 200
    assert len(asked) == 1


OTHERS = [
    {"dagster__partition": "Math1__s1"},
    {"dagster__partition": "Math101b"},
    {"attendansee__class": "Art1"},
    {"status": dg.DagsterRunStatus.NOT_STARTED, "attendansee__class": "Math101"},
    {"status": dg.DagsterRunStatus.SUCCESS, "attendansee__class": "Math101"},
    {PROCESS_TAG.replace("/", "__"): f"{socket.gethostname()}:{2**22 + 1}", "attendansee__class": "Math101"},
]


@pytest.mark.parametrize("run", OTHERS)
def test_runs_of_other_classes_and_runs_that_do_nothing_stop_nobody(serve, school, instance, run):
    begin(instance, **run)
    path = f"{API}/classes/{school.class_id}/assign-crops/"
    assert serve().post(path, json=DLIB).status_code == 200


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}", "http://127.0.0.1:{}/", "http://[::1]:{}", "http://"])
def test_without_a_webserver_a_launch_is_503_with_the_command(serve, school, address, monkeypatch):
    # A proxy is for other places than the webserver beside us.
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:9")
    client = serve(dagster_url=address.format(free_port()))
    for path in (
        f"/sessions/{school.sessions['s1']}/cluster-crops/",
        f"/classes/{school.class_id}/assign-crops",
    ):
        response = client.post(f"{API}{path}?run=dagster", json=DLIB)
        assert response.status_code == 503
        assert "attendansee up" in response.json()["detail"]


def test_what_cannot_be_run_is_not_launched(client, school):
    assert client.post(f"{API}/sessions/999999/cluster-crops/?run=dagster").status_code == 404
    path = f"{API}/sessions/{school.sessions['s1']}/cluster-crops/"
    assert client.post(f"{path}?run=dagster", json={"max_clusters": 0}).status_code == 422
    assert client.post(f"{path}?run=elsewhere", json=DLIB).status_code == 422


def test_a_misspelt_launch_is_422_and_runs_nothing(client, school):
    crop = school.crops["s1", 0, "Ada"]
    for path in (
        f"/sessions/{school.sessions['s1']}/assign-crops/?runn=dagster",
        "/face-crops/generate-embeddings-batch/?runn=dagster",
        f"/face-crops/{crop}/assign/?run=dagster",
    ):
        response = client.post(
            API + path, json={"model_name": "dlib", "face_crop_ids": [crop]} if "batch" in path else DLIB
        )
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"][0] == "query"
    assert client.get(f"{API}/face-crops/{crop}/").json()["state"] is None


def test_a_launch_with_missing_weights_is_503_before_dagster_is_asked(serve, school):
    client = serve(dagster_url=f"http://127.0.0.1:{free_port()}")
    for path, body in (
        (f"/sessions/{school.sessions['s1']}/assign-crops/", {"embedding_model": "arcface"}),
        ("/face-crops/generate-embeddings-batch/", {"model_name": "arcface", "face_crop_ids": [1]}),
    ):
        response = client.post(f"{API}{path}?run=dagster", json=body)
        assert response.status_code == 503
        assert "attendansee models fetch arcface" in response.json()["detail"]


@pytest.mark.slow
def test_a_job_is_launched_in_the_webserver(serve, school, instance):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    webserver = subprocess.Popen(
        [sys.executable, "-m", "dagster_webserver", "-p", str(port), "-w", str(PROJECT_ROOT / "workspace.yaml")],
        env={**os.environ, "DAGSTER_HOME": str(get_settings().dagster_home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(f"{url}/server_info")
        client = serve(dagster_url=url)
        started = {}
        for job, path, config in (
            ("cluster_session_crops", f"/sessions/{school.sessions['s1']}/cluster-crops/", {"max_clusters": 7}),
            ("cluster_class_crops", f"/classes/{school.class_id}/cluster-crops/", {"include_identified": True}),
            ("assign_session_crops", f"/sessions/{school.sessions['s1']}/assign-crops/", {"k": 3}),
            ("assign_class_crops", f"/classes/{school.class_id}/assign-crops/", {"use_voting": False}),
            ("generate_embeddings_batch", "/face-crops/generate-embeddings-batch/", {"face_crop_ids": [1, 2]}),
        ):
            # The default model, whose weights a clone does not have, would not be launched.
            model = {"model_name" if "batch" in job else "embedding_model": "dlib"}
            response = client.post(f"{API}{path}?run=dagster", json={**model, **config})
            assert response.status_code == 202, response.text
            answer = response.json()
            assert answer["url"] == f"{url}/runs/{answer['run_id']}"
            started[job] = instance.get_run_by_id(answer["run_id"])
            assert started[job].job_name == job
            assert config.items() <= started[job].run_config["ops"][job]["config"].items()
        assert started["cluster_class_crops"].tags["attendansee/class"] == "Math101"
        assert (
            started["assign_session_crops"].run_config["ops"]["assign_session_crops"]["config"]["session_id"]
            == (school.sessions["s1"])
        )
    finally:
        os.killpg(webserver.pid, signal.SIGTERM)
        webserver.wait(60)


def wait_for(url, seconds=120):
    deadline = time.monotonic() + seconds
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            return opener.open(url, timeout=5).read()
        except urllib.error.URLError:
            assert time.monotonic() < deadline, "the webserver does not answer"
            time.sleep(0.3)
