"""What every command shares."""

import getpass
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


def current_user() -> str:
    """Who decides: the user of the operating system, where it knows one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "cli"
