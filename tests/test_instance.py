"""Dagster's home folder, its configuration, and runs that lost their process."""

import json
import os
import socket
import subprocess
import sys

import dagster as dg
import pytest
import yaml

from pipelines.database import embedded
from pipelines.errors import AttendanseeError
from pipelines.instance import DAGSTER_YAML, PROCESS_TAG, fail_lost_runs, prepare_dagster_home, process_tag
from pipelines.settings import Settings, get_settings


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """What prepare_dagster_home sets is undone after each test."""
    for name in ("DAGSTER_HOME", "DAGSTER_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")


def test_home_is_made_and_named_to_dagster(tmp_path):
    home = prepare_dagster_home(Settings(home=tmp_path / "a home"))
    assert home == tmp_path / "a home" / "dagster"
    assert home.stat().st_mode & 0o077 == 0
    assert (home / "dagster.yaml").read_bytes() == DAGSTER_YAML.read_bytes()
    assert os.environ["DAGSTER_HOME"] == str(home)


def test_a_relative_home_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepare_dagster_home(Settings(home="here")) == tmp_path / "here" / "dagster"


def test_configuration_is_rewritten_only_when_it_differs(tmp_path):
    config = prepare_dagster_home(Settings(home=tmp_path)) / "dagster.yaml"
    written = config.stat().st_ino
    prepare_dagster_home(Settings(home=tmp_path))
    assert config.stat().st_ino == written
    config.write_text("telemetry: {enabled: true}\n")
    prepare_dagster_home(Settings(home=tmp_path))
    assert config.read_bytes() == DAGSTER_YAML.read_bytes()
    assert [path.name for path in config.parent.iterdir()] == ["dagster.yaml"]


def test_a_home_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AttendanseeError, match=r"file/dagster cannot be written .*ATTENDANSEE_HOME"):
        prepare_dagster_home(Settings(home=tmp_path / "file"))


@pytest.mark.slow
def test_dagster_reads_the_whole_configuration(tmp_path, monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("ATTENDANSEE_HOME", str(tmp_path))
    get_settings.cache_clear()
    home = prepare_dagster_home(get_settings())
    try:
        with dg.DagsterInstance.get() as instance:
            assert instance.get_runs() == []
            assert type(instance.run_storage).__name__ == "PostgresRunStorage"
            assert not instance.telemetry_enabled
            assert not instance.nux_enabled
            assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 2
            assert instance.run_retries_max_retries == 1
            assert not instance.run_retries_retry_on_asset_or_op_failure
            assert instance.run_monitoring_enabled
            assert instance.storage_directory().startswith(str(home))
    finally:
        get_settings.cache_clear()
        embedded.remove(tmp_path / "postgres")


def test_no_password_or_address_is_written_to_the_home():
    assert yaml.safe_load(DAGSTER_YAML.read_text())["storage"]["custom"]["config"] == {}


@dg.job
def nothing():
    pass


def code_server_tag(path):
    return {".dagster/grpc_info": json.dumps({"host": "localhost", "socket": str(path)})}


def test_runs_fail_whose_process_is_gone_and_no_others(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = socket.gethostname()
    with dg.DagsterInstance.ephemeral() as instance, socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "alive"))
        server.listen()

        def run(status, tags):
            return instance.create_run_for_job(nothing, status=status, tags=tags).run_id

        started, waiting = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.NOT_STARTED
        lost = {
            run(started, code_server_tag(tmp_path / "gone")),
            run(dg.DagsterRunStatus.STARTING, code_server_tag(tmp_path / "gone")),
            run(started, {PROCESS_TAG: f"{host}:{gone.pid}"}),
        }
        kept = {
            run(started, code_server_tag(tmp_path / "alive")): started,
            run(started, process_tag()): started,
            run(started, {PROCESS_TAG: f"elsewhere-{host}:{gone.pid}"}): started,
            run(started, {}): started,
            run(waiting, {PROCESS_TAG: f"{host}:{gone.pid}"}): waiting,
        }
        assert fail_lost_runs(instance) == len(lost)
        statuses = {run.run_id: run.status for run in instance.get_runs()}
        assert statuses == {**dict.fromkeys(lost, dg.DagsterRunStatus.FAILURE), **kept}
        assert fail_lost_runs(instance) == 0
