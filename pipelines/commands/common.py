"""What every command shares."""

import getpass
import json
from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from pydantic import BaseModel

from pipelines.errors import AttendanseeError
from pipelines.resources.embedding.registry import BROKEN, REGISTRY
from pipelines.settings import get_settings


class _Model(click.Choice):
    """A model's name; one whose definition is broken ends the command without a second message."""

    def __init__(self) -> None:
        super().__init__(list(REGISTRY))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in BROKEN:
            # The reason and the remedy are told when the registry is read, as this command started.
            raise click.exceptions.Exit(1)
        return super().convert(value, param, ctx)


MODEL = _Model()
CLASS = click.argument("class_name", metavar="CLASS")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON.")


def plain_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Show an error that is meant for a person as one sentence, and end with status 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except AttendanseeError as error:
            raise click.ClickException(str(error)) from error
        except Exception as error:
            if (reason := _lost_connection(error)) is None:
                raise
            raise click.ClickException(
                f"The connection to the database was lost ({reason}): nothing that was stored is lost. Run the same "
                "command again once the server is back."
            ) from error

    return run


def _lost_connection(error: BaseException | None) -> str | None:
    """Why the database server went away, where an error or what caused it says so."""
    # Imported by now wherever one of them was raised.
    import psycopg
    import sqlalchemy.exc

    while error is not None:
        if isinstance(error, (psycopg.OperationalError, sqlalchemy.exc.OperationalError)):
            reason = error.orig if isinstance(error, sqlalchemy.exc.OperationalError) else error
            return str(reason).strip().splitlines()[0].rstrip(".")
        error = error.__cause__ or error.__context__
    return None


def current_user() -> str:
    """Who decides: the user of the operating system, where it knows one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "cli"


def model_of(connection: Any, class_name: str, model: str | None = None) -> str:
    """The model that is named, else the class's active one, else the one that classes begin with."""
    from pipelines.database import catalog

    return model or catalog.active_model(connection, class_name) or get_settings().model


def print_json(answer: BaseModel) -> None:
    """Print an answer as JSON for programs, with the fields that the job's and the API's answers have."""
    click.echo(json.dumps(answer.model_dump(mode="json"), ensure_ascii=False, indent=2))
