"""The students of a class, as a list and from a roster."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from psycopg import Connection
from pydantic import BaseModel, Field

from pipelines.database import catalog, students
from pipelines.database.students import Student
from pipelines.errors import ConflictError, ParameterError, UnknownIdError
from pipelines.partitions import ENROL, session_key
from pipelines.services.attendance import refresh_every_lineage
from pipelines.services.context import ServiceContext, default_context
from pipelines.services.decision_parameters import REASON
from pipelines.services.decisions import clean_name, is_plain, rename_student
from pipelines.services.parameters import Id, Parameters

NAME_COLUMNS = ("first_name", "last_name")
COLUMNS = (*NAME_COLUMNS, "student_id", "email")
MAX_ROSTER_BYTES = 10_000_000
MAX_NUMBER_LENGTH = 100
MAX_EMAIL_LENGTH = 254

# What Excel writes above the head; the line's end stays.
_DECLARED_SEPARATOR = re.compile(r"(?P<quote>\"?)sep=(?P<separator>[,;\t|])(?P=quote)[ ,;]*(?=[\r\n])", re.IGNORECASE)
_EMAIL = re.compile(r"[^@\s,;<>\"]+@[^@\s,;<>\"]+\.[^@\s,;<>\"]+")


class ListStudents(Parameters):
    """Whose students are listed."""

    class_name: str = Field(description="Name of the class.")


class RenameStudent(Parameters):
    """Who gets which name."""

    student_id: Id = Field(description="Id of the student.")
    name: str = Field(description="The new name.")
    reason: str | None = REASON


class MergeStudents(Parameters):
    """Which two students are one."""

    student_id: Id = Field(description="Id of the student who is in no list any more afterwards.")
    into_student_id: Id = Field(description="Id of the student who is kept.")
    reason: str | None = REASON


class ImportStudents(Parameters):
    """Which roster is read, for which class."""

    class_name: str = Field(description="Name of the class.")
    create_class: bool = Field(default=False, description="Make the class where there is none of this name.")
    path: str = Field(
        description="CSV with the columns first_name, last_name and optionally student_id and email: a file or an fsspec "
        "URL."
    )


class StudentRow(BaseModel):
    """A student; crops are those confirmed or, by the class's active model, assigned; so are sessions by that model."""

    id: int
    name: str
    provisional: bool
    hidden: bool = Field(description="A visitor, as a person has said.")
    student_number: str | None
    email: str | None
    crops: int
    sessions_present: int


class StudentList(BaseModel):
    """The students of a class: named ones first, then provisional ones."""

    class_id: int
    class_name: str
    students: list[StudentRow]


class RefusedRow(BaseModel):
    """A row of a roster that was left out."""

    line: int = Field(description="Line of the file; its first is 1.")
    reason: str


class RosterRow(BaseModel):
    """A student as a roster has them; student_number is the roster's own `student_id`."""

    line: int
    name: str
    student_number: str | None
    email: str | None


class Roster(BaseModel):
    """A roster as it was read."""

    rows: list[RosterRow]
    refused: list[RefusedRow]
    notes: list[str]


class ImportedRow(BaseModel):
    """A row of a roster, and the student that it added or changed."""

    line: int
    student_id: int
    name: str


class ImportAnswer(BaseModel):
    """What importing a roster did."""

    status: Literal["success", "partial"] = Field(description="partial: rows were refused, the others are imported.")
    class_id: int
    class_name: str
    added: list[ImportedRow]
    updated: list[ImportedRow]
    unchanged: int
    refused: list[RefusedRow]
    notes: list[str]


@dataclass(frozen=True)
class StudentService:
    """Lists and imports students. Raises AttendanseeError for a class that is not there.

    decided_by, run_id: who imports, and in which Dagster run; kept with names that a roster corrects.

    >>> [student.name for student in StudentService("ann").list("Math101").students]
    ['Ada Lovelace']
    """

    decided_by: str
    run_id: str | None = None
    context: ServiceContext = field(default_factory=default_context, kw_only=True)

    def list(self, class_name: str) -> StudentList:
        """Every student of the class; those who were merged are in whom they were merged into."""
        with self.context.database.connection() as connection:
            class_id = catalog.find_class(connection, class_name)
            rows = students.list_students(connection, class_id)
        return StudentList(class_id=class_id, class_name=class_name, students=[StudentRow(**row) for row in rows])

    def find(self, class_name: str, student: str) -> int:
        """The id of the class's student with this name, else this id; raises UnknownIdError."""
        with self.context.database.connection() as connection:
            class_id = catalog.find_class(connection, class_name)
            named = catalog.student_named(connection, class_id, student)
            if named is not None:
                return named
            if student.isdecimal() and students.find_student(connection, int(student)).class_id == class_id:
                return int(student)
        raise UnknownIdError(
            f"The class {class_name} has no student {student!r}: `attendansee students list {class_name}` shows them."
        )

    def import_csv(self, class_name: str, content: str | bytes, create_class: bool = False) -> ImportAnswer:
        """Add the roster's students to the class, and bring known ones up to date.

        A row belongs to the student with its number, else to the one with its full name (now or formerly), whose number
        must not be another one. A cell that is empty erases nothing. A name that a student had before does not come
        back: somebody has given the newer one. create_class: a class that is not there is made; else UnknownIdError names
        those that are called nearly so. Raises ParameterError for a file that cannot be read as a whole.
        """
        roster = parse_roster(content)
        session_key(class_name, ENROL)  # Raises for a name that no class folder could have.
        with self.context.database.connection() as connection:
            if not create_class:
                _check_class_is_there(connection, class_name)
            class_id = catalog.ensure_class(connection, class_name)
            catalog.lock_class(connection, class_id, self.context.lock_patience_s)
            answer = ImportAnswer(
                status="success",
                class_id=class_id,
                class_name=class_name,
                added=[],
                updated=[],
                unchanged=0,
                refused=roster.refused,
                notes=roster.notes,
            )
            # A former name means its student only where no row has them under their number or name of now.
            rows = sorted(roster.rows, key=lambda row: self._known(connection, class_id, row) is None)
            claimed: set[int] = set()
            for row in rows:
                try:
                    self._import_row(connection, class_id, row, claimed, answer)
                except ConflictError as error:
                    answer.refused.append(RefusedRow(line=row.line, reason=str(error)))
            if answer.added or answer.updated:
                refresh_every_lineage(connection, class_id, catalog.session_ids(connection, class_id))
        for part in (answer.added, answer.updated, answer.refused):
            part.sort(key=lambda entry: entry.line)
        return answer.model_copy(update={"status": "partial" if answer.refused else "success"})

    def _import_row(
        self, connection: Connection, class_id: int, row: RosterRow, claimed: set[int], answer: ImportAnswer
    ) -> None:
        student_id = self._known(connection, class_id, row)
        merged = False
        if student_id is None:
            former = catalog.student_formerly_named(connection, class_id, row.name)
            merged = former in claimed and row.name in students.merged_names(connection, former)
            student_id = former if merged or former not in claimed else None
        if student_id is None:
            student_id = students.add_student(connection, class_id, row.name, row.student_number, row.email)
            claimed.add(student_id)
            answer.added.append(ImportedRow(line=row.line, student_id=student_id, name=row.name))
            return
        student = students.find_student(connection, student_id)
        claimed.add(student.id)
        # A row of a student who was merged says nothing of the one who was kept, whose own row counts.
        merged = merged or student.id != student_id
        changes = {} if merged else self._changes(connection, student, row)
        if not changes and (merged or not student.provisional):
            answer.unchanged += 1
            return
        name = str(changes.pop("name", student.name))
        if name != student.name or student.provisional:
            # With the name that they have too: who is in a roster is not provisional.
            rename_student(connection, student, name, decided_by=self.decided_by, run_id=self.run_id, reason="roster")
        if changes:
            students.update_student(connection, student.id, **changes)
        answer.updated.append(ImportedRow(line=row.line, student_id=student.id, name=name))

    def _known(self, connection: Connection, class_id: int, row: RosterRow) -> int | None:
        """The id of the student with the row's number, who may have been merged since, else of the one with its name."""
        numbered = None
        if row.student_number is not None:
            numbered = students.student_numbered(connection, class_id, row.student_number)
        return catalog.student_named(connection, class_id, row.name) if numbered is None else numbered

    def _changes(self, connection: Connection, student: Student, row: RosterRow) -> dict[str, str]:
        """The columns that the row changes; raises ConflictError where it has another number than the student."""
        if row.student_number is not None and student.student_number not in (None, row.student_number):
            raise ConflictError(
                f"The name {row.name!r} is that of the student with student_id {student.student_number}: tell the two "
                f"apart by their names, such as {f'{row.name} ({row.student_number})'!r}."
            )
        changes: dict[str, str] = {}
        if row.name != student.name and row.name not in students.former_names(connection, student.id):
            changes["name"] = row.name
        if row.student_number is not None and student.student_number is None:
            changes["student_number"] = row.student_number
        if row.email is not None and row.email != student.email:
            changes["email"] = row.email
        return changes


def _check_class_is_there(connection: Connection, class_name: str) -> None:
    """Raises UnknownIdError with the names that are near: one that is misspelt must not become a class beside the other."""
    known = {name.casefold(): name for name in catalog.class_names(connection)}
    if class_name not in known.values():
        near = [known[name] for name in get_close_matches(class_name.casefold(), known)]
        others = f"name {' or '.join(near)}" if near else "choose one that there is"
        raise UnknownIdError(
            f"There is no class {class_name!r}: {others}, or make it with create_class (--create-class)."
        )


def read_roster(path: str) -> bytes:
    """The bytes of a roster, a local file or an fsspec URL; raises ParameterError where it cannot be read."""
    from upath import UPath

    try:
        with UPath(path).expanduser().open("rb") as file:
            return file.read(MAX_ROSTER_BYTES + 1)
    except Exception as error:
        # An unknown protocol, a store's package that is not installed, wrong credentials: each store raises its own.
        reason = getattr(error, "strerror", None) or error
        raise ParameterError(f"The roster {path} cannot be read ({reason}): name an existing CSV file.") from error


def parse_roster(content: str | bytes) -> Roster:
    """Read a roster: CSV with a head line, separated by commas or semicolons, UTF-8 with or without BOM.

    Excel's own first line `sep=;` may stand above the head.

    Columns, in any order and case: first_name, last_name, and optionally student_id and email; others are left out with
    a note. A row with a mistake is refused with its line and reason, the others count. Raises ParameterError where the
    whole cannot be read.
    """
    text = _decoded(content)
    if declared := _DECLARED_SEPARATOR.match(text):
        # Blanked, so that the lines keep their numbers.
        text, delimiter = text[declared.end() :], declared["separator"]
    else:
        delimiter = max(",;", key=lambda candidate: len(set(COLUMNS).intersection(_head(text, candidate))))
    records = list(_records(text, delimiter))
    if not records:
        raise ParameterError("The roster is empty: its first line must name its columns.")
    head = _columns(records[0][1])
    missing = [column for column in NAME_COLUMNS if column not in head]
    if missing:
        raise ParameterError(
            f"The roster lacks the column(s) {', '.join(missing)}: its first line must name {', '.join(COLUMNS)}."
        )
    twice = [column for column in COLUMNS if head.count(column) > 1]
    if twice:
        raise ParameterError(f"The roster has the column(s) {', '.join(twice)} twice: leave one of each.")
    roster = Roster(rows=[], refused=[], notes=[])
    others = [column for column in head if column and column not in COLUMNS]
    if others:
        roster.notes.append(f"Left out: the column(s) {', '.join(map(repr, others))}.")
    seen: dict[tuple[str, str], int] = {}
    for line, cells in records[1:]:
        try:
            row = _row(line, head, cells)
            _check_once(row, seen)
        except ParameterError as error:
            roster.refused.append(RefusedRow(line=line, reason=str(error)))
        else:
            roster.rows.append(row)
    if not roster.rows and not roster.refused:
        raise ParameterError("The roster names no student: add a line for each below its head.")
    return roster


def _decoded(content: str | bytes) -> str:
    if len(content) > MAX_ROSTER_BYTES:
        raise ParameterError(f"The roster is larger than {MAX_ROSTER_BYTES // 1_000_000} MB: name a list of students.")
    if isinstance(content, str):
        return content.removeprefix("\ufeff")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParameterError("The roster is not UTF-8 text: save it as CSV UTF-8, then import it again.") from error


def _records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that hold anything, each with the number of the line that it starts on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ParameterError(
            f"The roster cannot be read from line {line} on ({error}): correct the quotes there."
        ) from error


def _columns(cells: list[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def _head(text: str, delimiter: str) -> list[str]:
    """The columns that the first line names if this separates them; csv.Sniffer guesses from the rows, often wrongly."""
    try:
        return next((_columns(cells) for _, cells in _records(text, delimiter)), [])
    except ParameterError:
        return []  # Quotes that make no sense with this separator.


def _row(line: int, head: list[str], cells: list[str]) -> RosterRow:
    if any(cell.strip() for cell in cells[len(head) :]):
        raise ParameterError("The row has more cells than the head has columns: put text with separators in quotes.")
    values = {column: cell.strip() for column, cell in zip(head, cells, strict=False)}
    number, email = values.get("student_id", ""), values.get("email", "")
    if len(number) > MAX_NUMBER_LENGTH or not is_plain(number):
        raise ParameterError(
            f"The student_id cannot be used: give at most {MAX_NUMBER_LENGTH} characters that can be shown."
        )
    if email and (len(email) > MAX_EMAIL_LENGTH or not is_plain(email) or not _EMAIL.fullmatch(email)):
        raise ParameterError(f"The email {email!r} is no address: write it as name@school.org, or leave it empty.")
    name = clean_name(" ".join(filter(None, (values.get(column) for column in NAME_COLUMNS))))
    return RosterRow(line=line, name=name, student_number=number or None, email=email or None)


def _check_once(row: RosterRow, seen: dict[tuple[str, str], int]) -> None:
    """Raises ParameterError for a student_id or name that an earlier row has; remembers the row's."""
    keys = {"name": row.name, "student_id": row.student_number}
    for column, value in keys.items():
        first = None if value is None else seen.get((column, value))
        if first is not None:
            apart = f", such as {f'{row.name} ({row.student_number or 2})'!r}" if column == "name" else ""
            raise ParameterError(
                f"The {column} {value!r} is that of line {first} too: each student has their own{apart}."
            )
    seen.update({(column, value): row.line for column, value in keys.items() if value is not None})
