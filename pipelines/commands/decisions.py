"""`attendansee decisions`, `undo` and `mark`: look at what people have decided, take it back, mark attendance by hand."""

from typing import Literal

import click

from pipelines.commands.common import AS_JSON, CLASS, current_user, plain_errors, print_json

REASON = click.option("--reason", help="Why, to be shown later.")


@click.command()
@click.argument("decision_id", metavar="ID", type=click.IntRange(min=1))
@REASON
@AS_JSON
@plain_errors
def undo(decision_id: int, reason: str | None, as_json: bool) -> None:
    """Take the decision ID back as if it had not been made (`attendansee decisions CLASS` shows them).

    An undo is a decision too: undoing it has the first one count again.
    """
    from pipelines.services.decisions import DecisionService

    answer = DecisionService(current_user()).undo(decision_id, reason)
    if as_json:
        print_json(answer)
        return
    click.echo(f"Undone: {answer.undone}\nTo take this back: attendansee undo {answer.decision_id}")


@click.command()
@CLASS
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many, newest first.")
@click.option(
    "--offset", type=click.IntRange(min=0), default=0, show_default=True, help="How many to leave out before."
)
@AS_JSON
@plain_errors
def decisions(class_name: str, limit: int, offset: int, as_json: bool) -> None:
    """Show what people have decided about CLASS, the newest first: who, when, what, and whether it counts."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from pipelines.database import catalog
    from pipelines.resources.database import Database
    from pipelines.services.decision_log import read_decisions

    with Database().connection() as connection:
        log = read_decisions(connection, catalog.find_class(connection, class_name), limit, offset)
    if as_json:
        print_json(log)
        return
    table = Table(
        Column("id", justify="right"),
        "when",
        Column("who", overflow="fold"),
        Column("what", overflow="fold"),
        Column("why", overflow="fold"),
        "counts",
    )
    for entry in log.results:
        counts = "yes" if entry.in_force else f"no, see {entry.undone_by}"
        when = f"{entry.decided_at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(
            str(entry.id), when, escape(entry.decided_by), escape(entry.sentence), escape(entry.reason or ""), counts
        )
    console = Console()
    console.print(table)
    if log.total > offset + len(log.results):
        console.print(f"{len(log.results)} of {log.total}: --offset {offset + limit} shows older ones.")


@click.command()
@CLASS
@click.argument("session", metavar="SESSION")
@click.argument("student", metavar="STUDENT")
@click.argument("status", type=click.Choice(["present", "absent", "excused", "photos"]))
@click.option("--note", help="Kept with it, such as who has excused the student.")
@AS_JSON
@plain_errors
def mark(
    class_name: str,
    session: str,
    student: str,
    status: Literal["present", "absent", "excused", "photos"],
    note: str | None,
    as_json: bool,
) -> None:
    """Say whether STUDENT was in SESSION of CLASS, whatever the photos show; `photos` has them count again."""
    from pipelines.database import catalog
    from pipelines.partitions import SessionKey
    from pipelines.services.decisions import DecisionService
    from pipelines.services.students import StudentService

    service = DecisionService(current_user())
    student_id = StudentService(current_user()).find(class_name, student)
    with service.context.database.connection() as connection:
        session_id = catalog.find_session(connection, SessionKey(class_name, session)).id
    answer = service.mark_attendance(session_id, student_id, None if status == "photos" else status, note)
    if as_json:
        print_json(answer)
        return
    whose = "as marked" if answer.manual else "by the photos"
    now = f"{answer.attendance} ({whose})" if answer.attendance else "in no row of the register"
    click.echo(f"{answer.student_name} in {session}: {now}. To take this back: attendansee undo {answer.decision_id}")


@click.command()
@CLASS
@plain_errors
def replay_decisions(class_name: str) -> None:
    """Derive names, merges, visitors and attendance of CLASS anew from all that people decided.

    Changes nothing where everything is as it should be; for a database that was changed by other means.
    """
    from pipelines.services.decisions import DecisionService

    DecisionService(current_user()).replay(class_name)
    click.echo(f"{class_name} is what its decisions make of it.")


DECISION_COMMANDS = (undo, decisions, mark, replay_decisions)
