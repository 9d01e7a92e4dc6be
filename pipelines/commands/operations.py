"""The operations on face crops from a terminal: each runs its Dagster job in this process and prints the answer."""

import json
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from pipelines.commands.common import plain_errors
from pipelines.errors import AttendanseeError, ParameterError
from pipelines.services.operations import OPERATIONS, Operation
from pipelines.services.parameters import MAX_ID, checked
from pipelines.settings import get_settings

_ARGUMENTS = {"crop_id": "CROP", "face_crop_ids": "CROP...", "session_id": "SESSION", "class_id": "CLASS"}


def build_command(operation: Operation) -> click.Command:
    """`attendansee <operation>`: the id as argument, the other parameters as options with their defaults."""

    @plain_errors
    def command(as_json: bool, **values: Any) -> None:
        answer = _launch(operation, values)
        click.echo(json.dumps(answer, ensure_ascii=False, indent=2) if as_json else _readable(answer))
        if answer["status"] == "error":
            raise SystemExit(1)

    parameters: list[click.Parameter] = [
        click.Option(["--json", "as_json"], is_flag=True, help="Print the whole answer as JSON.")
    ]
    for name, field in operation.parameters.model_fields.items():
        if name in _ARGUMENTS:
            many = name == "face_crop_ids"
            parameters.append(click.Argument([name], nargs=-1 if many else 1, metavar=_ARGUMENTS[name], required=True))
        else:
            parameters.append(_option(name, field))
    help_text = f"{operation.description}\n\nCROP is an id, SESSION an id or CLASS__SESSION, CLASS an id or a name."
    return click.Command(operation.name.replace("_", "-"), params=parameters, callback=command, help=help_text)


def _option(name: str, field: FieldInfo) -> click.Option:
    flag = f"--{name.replace('_', '-')}"
    if field.annotation is bool:
        return click.Option(
            [f"{flag}/--no-{flag[2:]}"], default=field.default, show_default=True, help=field.description
        )
    kind: Any = field.annotation
    if kind in (int, float):
        kind = _Number(kind)
    if get_origin(kind) is Literal:
        kind = click.Choice(get_args(kind))
    elif isinstance(field.json_schema_extra, dict) and "enum" in field.json_schema_extra:
        kind = click.Choice(list(map(str, field.json_schema_extra["enum"])))  # type: ignore[arg-type]
    return click.Option([flag], type=kind, default=field.default, show_default=True, help=field.description)


class _Number(click.ParamType):
    """A number; what is none is left to `checked`, which names the parameter and its range as everywhere else."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind
        self.name = {int: "integer", float: "float"}[kind]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002 - click's own signature
        """The number that is written, else the text."""
        return _number(value, self.kind)


def _launch(operation: Operation, values: dict[str, Any]) -> dict[str, Any]:
    """Check the parameters, run the job on the shared instance, and return what it answered."""
    import dagster as dg

    from pipelines.instance import fail_lost_runs, prepare_dagster_home, process_tag
    from pipelines.jobs.operations import RESPONSE
    from pipelines.resources.database import Database
    from pipelines.runner import why_it_failed

    with Database().connection() as connection:
        parameters = checked(operation.parameters, **_resolved(connection, values))
    prepare_dagster_home(get_settings())
    from pipelines.definitions import defs

    with dg.DagsterInstance.get() as instance:
        fail_lost_runs(instance)
        result = defs.resolve_job_def(operation.name).execute_in_process(
            instance=instance,
            tags=process_tag(),
            run_config={
                "ops": {operation.name: {"config": parameters.model_dump()}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            raise_on_error=False,
        )
    if not result.success:
        raise AttendanseeError(why_it_failed(result.run_id, result.all_events))
    (output,) = [event.step_output_data for event in result.all_node_events if event.is_successful_output]
    return output.metadata[RESPONSE].value  # type: ignore[return-value]


def _resolved(connection: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The arguments as ids."""
    from pipelines.database import catalog
    from pipelines.partitions import SEPARATOR, parse_session_key

    resolved = dict(values)
    if SEPARATOR in (session := values.get("session_id", "")):
        resolved["session_id"] = catalog.find_session(connection, parse_session_key(session)).id
    elif session:
        resolved["session_id"] = _id("session_id", session, "CLASS__SESSION")
    if class_name := values.get("class_id"):
        known = class_name in catalog.class_names(connection)
        resolved["class_id"] = (
            catalog.find_class(connection, class_name) if known else _id("class_id", class_name, "name")
        )
    if "crop_id" in values:
        resolved["crop_id"] = _number(values["crop_id"])
    if "face_crop_ids" in values:
        resolved["face_crop_ids"] = [_number(value) for value in values["face_crop_ids"]]
    return resolved


def _number(text: Any, kind: type[int] | type[float] = int) -> Any:
    """The number that is written; what is none stays as it is, to be refused with its parameter's name and range."""
    try:
        return kind(text)
    except ValueError:
        return text


def _id(parameter: str, text: str, what: str) -> int:
    number = _number(text)
    if isinstance(number, int):
        return number
    raise ParameterError(
        f"The parameter {parameter} cannot be used: {text!r} is no {what} that exists, and no id (allowed: 1 to {MAX_ID})."
    )


def _readable(answer: dict[str, Any]) -> str:
    """One line for each plain field, then one for each result."""
    lines = [f"{name:<22} {value}" for name, value in answer.items() if not isinstance(value, list)]
    for result in answer.get("results", answer.get("k_nearest", [])):
        lines.append("  " + "  ".join(f"{name}={value}" for name, value in result.items() if name != "k_nearest"))
    return "\n".join(lines)


OPERATION_COMMANDS = [build_command(operation) for operation in OPERATIONS.values()]
