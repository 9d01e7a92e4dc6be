"""Turn a session's assignments into attendance, and a class's sessions into its register."""

import csv
import io
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date

from psycopg import Connection

from pipelines.database import attendance, catalog
from pipelines.database.attendance import FaceCounts
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database


@dataclass(frozen=True)
class Register:
    """Who was there: students x sessions.

    cells maps (student, session) to present, absent, unsure, or unknown: a visitor or somebody not enrolled.
    """

    class_name: str
    model: str
    sessions: list[str]
    dates: dict[str, date | None]
    students: list[str]
    unknown: list[str]
    cells: dict[tuple[str, str], str]

    def counts(self, session: str) -> dict[str, int]:
        """How many students (and unknown people) have each status in a session."""
        statuses = [self.cells.get((name, session)) for name in (*self.students, *self.unknown)]
        return {status: statuses.count(status) for status in ("present", "absent", "unsure", "unknown")}

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
        """The table as CSV, one row per student and session."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["class", "session", "date", "student", "status"])
        for session in self.sessions:
            for name, status in self.attendance(session).items():
                writer.writerow([self.class_name, session, self.dates[session] or "", name, status])
        return out.getvalue()

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
    """Derive the attendance anew that any model's lineage has of these sessions of the class."""
    for model, registered in attendance.registered_sessions(connection, list(session_ids)).items():
        refresh_attendance(connection, class_id, registered, model)


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
    named = catalog.named_students(connection, class_id, model)
    cells = [
        cell
        for cell in attendance.read_attendance(connection, class_id, model)
        if cell.provisional or cell.student in named
    ]
    processed = {cell.session for cell in cells}
    provisional = sorted({cell.student for cell in cells if cell.provisional})
    students, unknown = (named, provisional) if named else (provisional, [])
    statuses = {(name, session): "absent" for name in students for session in processed}
    for cell in cells:
        statuses[cell.student, cell.session] = "unknown" if cell.student in unknown else cell.status
    return Register(
        class_name=class_name,
        model=model,
        sessions=[name for name in sessions if name in processed],
        dates=sessions,
        students=students,
        unknown=unknown,
        cells=statuses,
    )
