"""`attendansee students ...`: list, rename, merge, split, create, hide and import the students of a class."""

import click
from pydantic import BaseModel

from pipelines.commands.common import AS_JSON, CLASS, current_user, plain_errors, print_json

REASON = click.option("--reason", help="Why, to be shown later.")


@click.group()
def students() -> None:
    """List, name, merge, split, create, hide and import the students of a class; STUDENT is a name or an id."""


@students.command("list")
@CLASS
@AS_JSON
@plain_errors
def list_students(class_name: str, as_json: bool) -> None:
    """List the students of CLASS."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from pipelines.services.students import StudentService

    answer = StudentService(current_user()).list(class_name)
    if as_json:
        print_json(answer)
        return
    table = Table(
        Column("id", justify="right"),
        Column("student", overflow="fold"),
        "student_id",
        Column("email", overflow="fold"),
        Column("faces", justify="right"),
        Column("sessions", justify="right"),
    )
    for row in answer.students:
        notes = ", ".join(note for note, holds in (("provisional", row.provisional), ("visitor", row.hidden)) if holds)
        name = f"{escape(row.name)} [dim]({notes})[/]" if notes else escape(row.name)
        number, email = escape(row.student_number or ""), escape(row.email or "")
        table.add_row(str(row.id), name, number, email, str(row.crops), str(row.sessions_present))
    Console().print(table)


@students.command()
@CLASS
@click.argument("student")
@click.argument("new_name")
@REASON
@AS_JSON
@plain_errors
def rename(class_name: str, student: str, new_name: str, reason: str | None, as_json: bool) -> None:
    """Give STUDENT of CLASS the name NEW_NAME."""
    from pipelines.services.decisions import DecisionService
    from pipelines.services.students import StudentService

    student_id = StudentService(current_user()).find(class_name, student)
    answer = DecisionService(current_user()).rename(student_id, new_name, reason)
    _print(answer, f"{answer.old_name} is {answer.student_name} now.", as_json)


@students.command()
@CLASS
@click.argument("student")
@click.argument("into")
@REASON
@AS_JSON
@plain_errors
def merge(class_name: str, student: str, into: str, reason: str | None, as_json: bool) -> None:
    """Say that STUDENT and INTO of CLASS are one: INTO is kept, with the name that a person gave."""
    from pipelines.services.decisions import DecisionService
    from pipelines.services.students import StudentService

    service = StudentService(current_user())
    merged, kept = service.find(class_name, student), service.find(class_name, into)
    answer = DecisionService(current_user()).merge(merged, kept, reason)
    _print(answer, f"{student} and {into} are {answer.student_name} (student {answer.student_id}) now.", as_json)


@students.command()
@CLASS
@click.argument("student")
@click.argument("crops", metavar="CROP...", nargs=-1, required=True, type=click.IntRange(min=1))
@click.option("--name", help="Name of the new student; without one they are provisional.")
@REASON
@AS_JSON
@plain_errors
def split(
    class_name: str, student: str, crops: tuple[int, ...], name: str | None, reason: str | None, as_json: bool
) -> None:
    """Say that these faces (CROP: an id) of STUDENT of CLASS are another person's, who is a new student."""
    from pipelines.services.decisions import DecisionService
    from pipelines.services.students import StudentService

    student_id = StudentService(current_user()).find(class_name, student)
    answer = DecisionService(current_user()).split(list(crops), name, reason, student_id=student_id)
    text = f"{len(answer.crop_ids)} face(s) of {student} are {answer.student_name} (student {answer.student_id}) now."
    _print(answer, text, as_json)


@students.command()
@click.argument("crops", metavar="CROP...", nargs=-1, required=True, type=click.IntRange(min=1))
@click.option("--name", help="Name of the new student; without one they are provisional.")
@REASON
@AS_JSON
@plain_errors
def create(crops: tuple[int, ...], name: str | None, reason: str | None, as_json: bool) -> None:
    """Say that these faces (CROP: an id), which show nobody, are a new student's of their class."""
    from pipelines.services.decisions import DecisionService

    answer = DecisionService(current_user()).create_student(list(crops), name, reason)
    text = f"{len(answer.crop_ids)} face(s) are {answer.student_name} (student {answer.student_id}), who is new."
    _print(answer, f"{text} To take this back: attendansee undo {answer.decision_id}", as_json)


@students.command()
@CLASS
@click.argument("student")
@REASON
@AS_JSON
@plain_errors
def hide(class_name: str, student: str, reason: str | None, as_json: bool) -> None:
    """Say that STUDENT of CLASS is a visitor: in no register, and their face is nobody else's."""
    from pipelines.services.decisions import DecisionService
    from pipelines.services.students import StudentService

    student_id = StudentService(current_user()).find(class_name, student)
    answer = DecisionService(current_user()).hide(student_id, reason)
    _print(
        answer, f"{answer.student_name} is a visitor. To take this back: attendansee undo {answer.decision_id}", as_json
    )


@students.command("import")
@CLASS
@click.argument("csv", metavar="CSV")
@click.option("--create-class", is_flag=True, help="Make CLASS where there is none of this name.")
@AS_JSON
@plain_errors
def import_students(class_name: str, csv: str, create_class: bool, as_json: bool) -> None:
    """Add the students of a roster to CLASS: first_name, last_name and optionally student_id and email."""
    from pipelines.services.students import StudentService, read_roster

    answer = StudentService(current_user()).import_csv(class_name, read_roster(csv), create_class)
    lines = [
        f"{len(answer.added)} added, {len(answer.updated)} updated, {answer.unchanged} unchanged, "
        f"{len(answer.refused)} refused.",
        *answer.notes,
        *(f"line {row.line}: {row.reason}" for row in answer.refused),
    ]
    _print(answer, "\n".join(lines), as_json)
    if answer.refused:
        raise SystemExit(1)


def _print(answer: BaseModel, text: str, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        click.echo(text)
