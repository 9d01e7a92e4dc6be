"""`attendansee api` itself, as a process: starting, serving, stopping; and what schemathesis finds in it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-c", "from pipelines.cli import main; main()", "api"]
TOKEN = "a-token-of-the-tests"


@pytest.fixture
def api(school, home):
    """Starts the command on a free port over the test's database; returns the process and the address it says."""
    processes = []

    def start(*arguments, **environment):
        process = subprocess.Popen(
            [*COMMAND, "--port", "0", *arguments],
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
