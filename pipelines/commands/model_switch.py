"""`attendansee compare`, `switch-model` and `delete-lineage`: from one embedding model to another, and back."""

import json
from typing import Any

import click

from pipelines.commands.common import AS_JSON, CLASS, MODEL, current_user, plain_errors, print_json
from pipelines.settings import get_settings

# Rows of each list in a terminal; the other formats give all.
_ROWS_SHOWN = 50

_MODEL = click.argument("model_name", metavar="MODEL", type=MODEL)


@click.command()
@CLASS
@click.option("--model", "model_name", type=MODEL, required=True, help="The other model.")
@click.option("--format", "style", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@plain_errors
def compare(class_name: str, model_name: str, style: str) -> None:
    """Compare what another model says about CLASS with what its active one says."""
    from pipelines.resources.database import Database
    from pipelines.resources.embedding_models import EmbeddingModels
    from pipelines.services.model_comparison import compare_models

    models = EmbeddingModels.from_settings(get_settings())
    comparison = compare_models(Database(), models, class_name, model_name)
    if style == "csv":
        click.echo(comparison.to_csv(), nl=False)
    elif style == "json":
        click.echo(comparison.model_dump_json(indent=2))
    else:
        _print_comparison(comparison)


@click.command("switch-model")
@CLASS
@_MODEL
@click.option("--reason", required=True, help="Why, for those who look at the switch later.")
@click.option(
    "--accept",
    type=int,
    multiple=True,
    metavar="CROP",
    help="A confirmed face crop that the model may take for somebody else; once for each.",
)
@click.option(
    "--allow-missing-sessions", is_flag=True, help="Switch although sessions are missing in the model's lineage."
)
@AS_JSON
@plain_errors
def switch_model(
    class_name: str,
    model_name: str,
    reason: str,
    accept: tuple[int, ...],
    allow_missing_sessions: bool,
    as_json: bool,
) -> None:
    """Let MODEL's attendance count for CLASS, and process new photos with it.

    The other model's lineage stays as it is: the same command with its name goes back.
    """
    import dagster as dg

    from pipelines.instance import fail_lost_runs, prepare_dagster_home
    from pipelines.jobs.model_switch import check_switch
    from pipelines.services.context import default_context
    from pipelines.services.model_switch import ModelSwitchService, SwitchModel
    from pipelines.services.parameters import checked

    parameters = checked(
        SwitchModel,
        class_name=class_name,
        model_name=model_name,
        reason=reason,
        accept=list(accept),
        allow_missing_sessions=allow_missing_sessions,
    )
    context = default_context()
    prepare_dagster_home(context.settings)
    with dg.DagsterInstance.get() as instance:
        fail_lost_runs(instance)
        check_switch(instance, context, parameters)
    answer = ModelSwitchService(current_user(), context=context).switch(
        class_name, model_name, reason, accept=accept, allow_missing_sessions=allow_missing_sessions
    )
    if as_json:
        print_json(answer)
        return
    click.echo(f"{answer.new_model} counts for {class_name} now, in place of {answer.old_model}.")
    if answer.accepted_crops:
        click.echo(f"Accepted: it contradicts the confirmed faces {', '.join(map(str, answer.accepted_crops))}.")
    for session, reason_missing in answer.missing_sessions.items():
        click.echo(f"Lacking: {session} ({reason_missing}).")
    click.echo(f"Back: attendansee switch-model {class_name} {answer.old_model} --reason ...")


@click.command("model-history")
@CLASS
@AS_JSON
@plain_errors
def model_history(class_name: str, as_json: bool) -> None:
    """Print who switched CLASS to another model, when and why, the latest first."""
    from dataclasses import asdict

    from pipelines.database import catalog, lineages
    from pipelines.resources.database import Database

    with Database().connection() as connection:
        switches = lineages.read_switches(connection, catalog.find_class(connection, class_name))
    if as_json:
        click.echo(json.dumps([asdict(switch) for switch in switches], ensure_ascii=False, indent=2, default=str))
        return
    for switch in switches:
        click.echo(
            f"{switch.switched_at:%Y-%m-%d %H:%M} {switch.old_model} -> {switch.new_model} by {switch.switched_by}: "
            f"{switch.reason}"
        )
        if switch.accepted_crops:
            click.echo(f"  accepted contradictions of face crops {', '.join(map(str, switch.accepted_crops))}")
        if switch.missing_sessions:
            click.echo(f"  without sessions {', '.join(switch.missing_sessions)}")
    if not switches:
        click.echo(f"{class_name} has never switched.")


@click.command("delete-lineage")
@CLASS
@_MODEL
@click.option("--yes", is_flag=True, help="Do not ask.")
@AS_JSON
@plain_errors
def delete_lineage(class_name: str, model_name: str, yes: bool, as_json: bool) -> None:
    """Delete what MODEL, which must not be the active one, has said about CLASS: vectors, clusters, attendance.

    What people have confirmed stays.
    """
    import dagster as dg

    from pipelines.instance import fail_lost_runs, prepare_dagster_home
    from pipelines.jobs.model_switch import check_deletion
    from pipelines.services.context import default_context
    from pipelines.services.model_switch import ModelSwitchService

    if not yes:
        click.confirm(
            f"Delete all that {model_name} has said about {class_name}? There is no way back but a new backfill.",
            abort=True,
        )
    context = default_context()
    prepare_dagster_home(context.settings)
    with dg.DagsterInstance.get() as instance:
        fail_lost_runs(instance)
        check_deletion(instance, model_name, class_name)
    answer = ModelSwitchService(current_user(), context=context).delete_lineage(class_name, model_name)
    if as_json:
        print_json(answer)
        return
    click.echo(
        f"Deleted of {model_name} in {class_name}: {answer.vectors} vectors, {answer.clusters} clusters, "
        f"{answer.assignments} assignments, {answer.attendance} attendance cells, {answer.students} unknown people."
    )
    click.echo(answer.note)


def _print_comparison(comparison: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.measure import Measurement
    from rich.table import Table

    console = Console()

    def show(table: Table) -> None:
        # Cut off at the edge of a narrow terminal or a pipe, it would hide names.
        options = console.options.update(width=10_000)
        console.width = max(console.width, Measurement.get(console, options, table).maximum)
        console.print(table)

    old, new = comparison.old, comparison.new
    summary = Table(title=f"{comparison.class_name}: {old.model} (active) and {new.model}", title_justify="left")
    for column in ("", old.model, new.model):
        summary.add_column(column, justify="right" if column else "left")
    sides = (old, new)
    summary.add_row("sessions covered", *(f"{s.sessions_covered} of {comparison.sessions}" for s in sides))
    summary.add_row("faces embedded", *(f"{s.crops_embedded} of {comparison.crops}" for s in sides))
    for name in type(old.thresholds).model_fields:
        summary.add_row(name.replace("_", " "), *(f"{getattr(s.thresholds, name):.4g}" for s in sides))
    for name in type(old.confirmed).model_fields:
        label = f"confirmed faces: {name.replace('_', ' ')}"
        summary.add_row(label, *(str(getattr(s.confirmed, name)) for s in sides))
    show(summary)
    share = "" if comparison.agreement is None else f" ({comparison.agreement:.1%})"
    console.print(
        f"They agree about {comparison.crops_agreed} of {comparison.crops_compared} faces{share}. "
        f"{comparison.contradictions} confirmed faces contradict {new.model}. "
        f"{len(comparison.attendance_changes)} of {comparison.attendance_cells} attendance cells would change."
    )
    for session, reason in list(new.lacking.items())[:_ROWS_SHOWN]:
        console.print(f"[yellow]lacking in {new.model}:[/] {escape(session)} ({reason})", highlight=False)
    faces = Table("face crop", "session", "confirmed", old.model, new.model, "", title="Faces", title_justify="left")
    for face in comparison.disagreements[:_ROWS_SHOWN]:
        mark = "[red]contradicts[/]" if face.contradicts else ""
        answers = (_readable(face.old), _readable(face.new))
        texts = map(escape, (str(face.face_crop_id), face.session, face.confirmed or "", *answers))
        faces.add_row(*texts, mark)
    cells = Table("session", "student", old.model, new.model, title="Attendance", title_justify="left")
    for change in comparison.attendance_changes[:_ROWS_SHOWN]:
        cells.add_row(change.session, escape(change.student), change.old or "-", change.new or "-")
    for table, total in (
        (faces, len(comparison.disagreements)),
        (cells, len(comparison.attendance_changes)),
    ):
        if total:
            show(table)
        if total > _ROWS_SHOWN:
            console.print(f"and {total - _ROWS_SHOWN} more: --format csv gives all")


def _readable(answer: Any) -> str:
    if answer is None:
        return "-"
    confidence = "" if answer.confidence is None else f" {answer.confidence:.2f}"
    return f"{answer.student or 'nobody'}{'?' if answer.state == 'needs_review' else ''}{confidence}"


MODEL_SWITCH_COMMANDS = [compare, switch_model, model_history, delete_lineage]
