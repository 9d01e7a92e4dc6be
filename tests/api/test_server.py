"""`attendansee api` itself, as a process: starting, serving, stopping; and what schemathesis finds in it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pipelines.database import catalog

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-c", "from pipelines.cli import main; main()", "api"]
TOKEN = "a-token-of-the-tests"


@pytest.fixture
def api(school, home):
    """Starts the command on a free port over the test's database; returns the process and the address it says."""
    processes = []

    def start(*arguments, stopping_seconds=30, **environment):
        program = (
            f"from pipelines.api import server; server.STOPPING_SECONDS = {stopping_seconds}; "
            "from pipelines.cli import main; main()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, "api", "--port", "0", *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        said = process.stdout.readline()
        found = re.match(r"HTTP API: (http://\S+) ", said)
        assert found, said + process.stdout.read()
        return process, found[1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def get(url, token=None):
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"} if token else {})
    # Not a proxy that the environment names.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        return json.load(response)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_its_address_once_it_serves_and_ends_on_a_signal(api, number):
    process, url = api()
    assert get(f"{url}/api/attendance/classes/")["total"] == 1
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert (said, process.returncode) == ("Stopped.\n", 0)


def test_any_loopback_address_is_served(api):
    _, url = api("--host", "127.0.0.2")
    assert url.startswith("http://127.0.0.2:")
    assert get(f"{url}/api/attendance/classes/")["total"] == 1


def test_a_port_in_use_is_said_in_one_sentence(database):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        ended = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(
        rf"Error: Port {port} of 127\.0\.0\.1 cannot be used \(.*\): choose another with --port\.\n", ended.stderr
    )


def test_other_machines_are_not_served_without_a_token(database):
    ended = subprocess.run([*COMMAND, "--host", "0.0.0.0"], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(r"Error: Other machines reach 0\.0\.0\.0, .* ATTENDANSEE_API_TOKEN .*\n", ended.stderr)


@pytest.mark.parametrize("port", ["70000", "65536", "-1"])
def test_a_port_that_there_is_not_is_refused(database, port):
    ended = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(rf"Error: There is no port {port}: choose one from 1 to 65535 .*\n", ended.stderr)


def called(url, answers):
    """Posts in a thread; the answer goes into the list."""

    def ask():
        request = urllib.request.Request(url, json.dumps({"embedding_model": "dlib"}).encode())
        request.add_header("content-type", "application/json")
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
                answers.append((response.status, json.load(response)))
        except urllib.error.HTTPError as error:
            answers.append((error.code, json.load(error)))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def wait_for_lock(connection):
    """Until somebody waits for the lock that the connection holds."""
    for _ in range(200):
        if connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() != (0,):
            return
        time.sleep(0.05)
    raise AssertionError("nobody waits for the lock")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_call_in_flight_is_answered_before_the_end(api, school, database, number):
    process, url = api()
    answers = []
    with database.connection() as connection:
        catalog.lock_class(connection, school.class_id)
        thread = called(f"{url}/api/attendance/classes/{school.class_id}/assign-crops/", answers)
        wait_for_lock(connection)
        process.send_signal(number)
        time.sleep(1)
    said, _ = process.communicate(timeout=30)
    thread.join()
    assert [status for status, _ in answers] == [200]
    assert (said, process.returncode) == ("Stopped.\n", 0)


def test_a_second_ctrl_c_cuts_calls_off_with_an_answer_and_their_work_goes_on(api, school, database):
    process, url = api()
    answers = []
    with database.connection() as connection:
        catalog.lock_class(connection, school.class_id)
        thread = called(f"{url}/api/attendance/classes/{school.class_id}/assign-crops/", answers)
        wait_for_lock(connection)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        thread.join()
        process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    ((status, answer),) = answers
    assert status == 503
    assert "may still be carried out" in answer["detail"]
    assert said == "assign_class_crops was cut off, for the server stops; its work goes on to its end\nStopped.\n"
    assert process.returncode == 0
    with database.connection() as connection:
        assert connection.execute("SELECT count(*) FROM assignments WHERE state = 'assigned'").fetchone() != (0,)


def test_a_call_beyond_the_grace_time_is_cut_off_with_an_answer(api, school, database):
    process, url = api(stopping_seconds=1)
    answers = []
    with database.connection() as connection:
        catalog.lock_class(connection, school.class_id)
        thread = called(f"{url}/api/attendance/classes/{school.class_id}/assign-crops/", answers)
        wait_for_lock(connection)
        process.send_signal(signal.SIGTERM)
        thread.join()
    said, _ = process.communicate(timeout=30)
    assert [status for status, _ in answers] == [503]
    assert "Traceback" not in said
    assert process.returncode == 0


def test_two_quick_ctrl_c_end_it_without_a_traceback(api):
    process, _ = api()
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert (said, process.returncode) == ("Stopped.\n", 0)


@pytest.mark.slow
def test_schemathesis_finds_nothing(api, tmp_path):
    process, url = api(ATTENDANSEE_API_TOKEN=TOKEN, ATTENDANSEE_DAGSTER_URL="http://127.0.0.1:1")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", HERE / "schemathesis.toml"),
            *("run", f"{url}/openapi.json"),
            *("--header", f"Authorization: Bearer {TOKEN}", "--checks", "all"),
            *("--max-examples", "10", "--seed", "1", "--continue-on-failure", "--suppress-health-check", "all"),
            *("--no-color",),
        ],
        cwd=tmp_path,
        env={
            **{name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")},
            "PYTHONPATH": str(HERE),
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    # Apart from requests that are no HTTP, nothing was worth a line.
    assert set(said.splitlines()) <= {"Invalid HTTP request received.", "Stopped."}
