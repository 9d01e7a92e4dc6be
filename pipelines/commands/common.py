"""What every command shares."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from pipelines.errors import AttendanseeError


def plain_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Show an error that is meant for a person as one sentence, and end with status 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except AttendanseeError as error:
            raise click.ClickException(str(error)) from error

    return run
