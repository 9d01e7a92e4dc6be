"""Turn a session's assignments into attendance, and a class's sessions into its register."""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import date

from psycopg import Connection

from pipelines.database import attendance, catalog, review
from pipelines.database.attendance import FaceCounts
from pipelines.database.review import ManualMark
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.services.spreadsheet import csv_text

STATUSES = ("present", "absent", "unsure", "excused", "unknown", "visitor")


@dataclass(frozen=True)
class Register:
    """Who was there: students x sessions.

    cells maps (student, session) to present, absent, unsure, excused, unknown (somebody whom nobody has named, in a
    class with students who are named) or visitor. marks: what people have set by hand, of the cells that it is about.
    visitors are in no row, only counted.
    """

    class_name: str
    model: str
    sessions: list[str]
    dates: dict[str, date | None]
    students: list[str]
    unknown: list[str]
    cells: dict[tuple[str, str], str]
    visitors: list[str] = field(default_factory=list)
    marks: dict[tuple[str, str], ManualMark] = field(default_factory=dict)

    def counts(self, session: str) -> dict[str, int]:
        """How many students, unknown people and visitors have each status in a session."""
        statuses = [self.cells.get((name, session)) for name in (*self.students, *self.unknown, *self.visitors)]
        return {status: statuses.count(status) for status in STATUSES}

    def attendance(self, session: str) -> dict[str, str]:
        """The status of every student, and of every unknown person who was seen, in a session."""
        return {
            name: self.cells[name, session] for name in (*self.students, *self.unknown) if (name, session) in self.cells
        }

    def rows(self) -> list[list[str]]:
        """The table's rows without its head: name, then one status per session ('' where an unknown was not seen)."""
        return [
            [name, *(self.cells.get((name, session), "") for session in self.sessions)]
            for name in (*self.students, *self.unknown)
        ]

    def to_csv(self) -> str:
        """The table as CSV, one row per student and session; by_hand: who set the status, where a person did."""
        rows: list[list[object]] = [["class", "session", "date", "student", "status", "by_hand", "note"]]
        for session in self.sessions:
            for name, status in self.attendance(session).items():
                mark = self.marks.get((name, session))
                by_hand = (mark.decided_by, mark.note) if mark else (None, None)
                rows.append([self.class_name, session, self.dates[session], name, status, *by_hand])
        return csv_text(rows)

    def to_json(self) -> str:
        """The table as JSON: sessions with date, counts and the status of every student."""
        return json.dumps(
            {
                "class": self.class_name,
                "model": self.model,
                "sessions": [
                    {
                        "session": session,
                        "date": held_on.isoformat() if (held_on := self.dates[session]) else None,
                        "counts": self.counts(session),
                        "attendance": self.attendance(session),
                        "by_hand": {
                            name: {"by": mark.decided_by, "note": mark.note}
                            for (name, marked), mark in self.marks.items()
                            if marked == session
                        },
                    }
                    for session in self.sessions
                ],
            },
            ensure_ascii=False,
            indent=2,
        )


def refresh_attendance(connection: Connection, class_id: int, session_ids: Collection[int], model: str) -> None:
    """Derive the sessions' attendance from their assignments, in the transaction that has changed these."""
    if not session_ids:
        return
    withdrawn = catalog.withdrawn_student_ids(connection, class_id, model)
    for session_id in sorted(session_ids):
        if not catalog.session_by_id(connection, session_id).is_enrolment:
            attendance.register_session(connection, session_id, model, withdrawn)
    catalog.adopt_model(connection, catalog.class_by_id(connection, class_id), model)


def refresh_every_lineage(connection: Connection, class_id: int, session_ids: Iterable[int]) -> None:
    """Derive the attendance anew that any model's lineage has of these sessions of the class.

    In the active lineage, sessions in which nobody has looked yet get what people say of them.
    """
    ids = set(session_ids)
    by_model = attendance.looked_at_sessions(connection, ids)
    for model, looked_at in by_model.items():
        refresh_attendance(connection, class_id, looked_at, model)
    active = catalog.active_model(connection, catalog.class_by_id(connection, class_id))
    if active is not None:
        for session_id in sorted(
            attendance.marked_sessions(connection, ids, active).difference(by_model.get(active, ()))
        ):
            attendance.register_session(connection, session_id, active, (), looked_at=False)


@dataclass(frozen=True)
class AttendanceService:
    """Registers and reads attendance in one model's lineage."""

    database: Database
    model_name: str

    def register_session(self, key: SessionKey) -> FaceCounts:
        """Write the session's attendance from its assignments; returns what became of its faces."""
        with self.database.connection() as connection:
            session = catalog.find_session(connection, key)
            if not session.is_enrolment:
                # Else a decision made meanwhile would be overwritten with what was derived before it.
                catalog.lock_class(connection, session.class_id)
                refresh_attendance(connection, session.class_id, [session.id], self.model_name)
            return attendance.count_faces(connection, session.id, self.model_name)

    def register(self, class_name: str) -> Register:
        """The class's register. Where nobody is enrolled or named yet, the provisional students are the class."""
        with self.database.connection() as connection:
            return read_register(connection, class_name, self.model_name)


def read_register(connection: Connection, class_name: str, model: str) -> Register:
    """The class's register in one model's lineage."""
    class_id = catalog.find_class(connection, class_name)
    sessions = catalog.session_dates(connection, class_id)
    people = {student.id: student for student in review.read_students(connection, class_id)}
    hidden = {student.name for student in people.values() if student.hidden}
    named = [name for name in catalog.named_students(connection, class_id, model) if name not in hidden]
    cells = [
        cell
        for cell in attendance.read_attendance(connection, class_id, model)
        if cell.provisional or cell.hidden or cell.student in named
    ]
    processed = {cell.session for cell in cells}
    visitors = sorted({cell.student for cell in cells if cell.hidden})
    provisional = sorted({cell.student for cell in cells if cell.provisional and not cell.hidden})
    students, unknown = (named, provisional) if named else (provisional, [])
    # Where only a person has said something, nobody has looked for the others.
    looked_at = {cell.session for cell in cells if not cell.manual}
    statuses = {(name, session): "absent" for name in students for session in looked_at}
    for cell in cells:
        if cell.hidden:
            statuses[cell.student, cell.session] = "visitor"
        elif cell.student in unknown and not cell.manual:
            statuses[cell.student, cell.session] = "unknown"
        else:
            statuses[cell.student, cell.session] = cell.status
    by_hand = {(cell.student, cell.session) for cell in cells if cell.manual and not cell.hidden}
    marks = {
        place: mark
        for mark in review.read_marks(connection, class_id)
        if mark.student_id in people and (place := (people[mark.student_id].name, mark.session)) in by_hand
    }
    return Register(
        class_name=class_name,
        model=model,
        sessions=[name for name in sessions if name in processed],
        dates=sessions,
        students=students,
        unknown=unknown,
        visitors=visitors,
        cells=statuses,
        marks=marks,
    )
