"""Launching a job as the UI does, and what its one op answered or failed with."""

from collections.abc import Callable

import dagster as dg
import pytest

from pipelines.definitions import defs


@pytest.fixture
def launch(database) -> Callable[..., dg.ExecuteInProcessResult]:
    """Launches a job of the code location with the configuration of its op."""

    def run(name: str, /, **config: object) -> dg.ExecuteInProcessResult:
        return defs.resolve_job_def(name).execute_in_process(
            run_config={"ops": {name: {"config": config}}}, raise_on_error=False
        )

    return run


@pytest.fixture
def response() -> Callable[[dg.ExecuteInProcessResult], dict]:
    """Reads the answer of a run that has succeeded."""

    def read(result: dg.ExecuteInProcessResult) -> dict:
        assert result.success
        (output,) = [event.step_output_data for event in result.all_node_events if event.is_successful_output]
        return output.metadata["response"].value

    return read


@pytest.fixture
def failure() -> Callable[[dg.ExecuteInProcessResult], str]:
    """Reads what a run has failed with."""

    def read(result: dg.ExecuteInProcessResult) -> str:
        assert not result.success
        (event,) = [event for event in result.all_node_events if event.is_step_failure]
        return str(event.event_specific_data.error)

    return read
