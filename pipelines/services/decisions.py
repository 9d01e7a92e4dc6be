"""What people say about crops and students: kept for good, honoured by every run, in force at once."""

import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from psycopg import Connection
from pydantic import BaseModel, Field

from pipelines.database import attendance, catalog, decisions, students
from pipelines.database.catalog import SessionRow
from pipelines.database.decisions import AttendanceStatus, Decision, Kind
from pipelines.database.students import Student
from pipelines.errors import ConflictError, ParameterError
from pipelines.services.attendance import refresh_every_lineage
from pipelines.services.context import ServiceContext, default_context
from pipelines.services.decision_log import read_decision
from pipelines.services.student_states import refresh_students

MAX_NAME_LENGTH = 200
MAX_REASON_LENGTH = 2000
MAX_CROPS = 1000  # of one decision

# Zero-width non-joiner and joiner, which Persian and Indian names need between letters.
_JOINERS = "\u200c\u200d"
# Letters to Unicode, and nothing to see.
_FILLERS = "\u115f\u1160\u3164\uffa0"

Found = TypeVar("Found", SessionRow, Student, Decision)


class CropDecisionAnswer(BaseModel):
    """A decision about a crop, and who the crop shows now."""

    status: Literal["success"] = "success"
    decision_id: int
    crop_id: int
    student_id: int | None = Field(description="The student now, in the class's active lineage; null for nobody.")
    student_name: str | None


class CropsDecisionAnswer(BaseModel):
    """A decision about several crops, and the student whom they show now."""

    status: Literal["success"] = "success"
    decision_id: int
    crop_ids: list[int]
    student_id: int | None = Field(description="Null for nobody.")
    student_name: str | None


class RenameAnswer(BaseModel):
    """A student's new name."""

    status: Literal["success"] = "success"
    decision_id: int
    student_id: int
    old_name: str
    student_name: str


class MergeAnswer(BaseModel):
    """Two students who are one now."""

    status: Literal["success"] = "success"
    decision_id: int
    student_id: int = Field(description="The student who is kept.")
    student_name: str
    provisional: bool
    merged_student_id: int = Field(description="The student who is in no list any more.")


class SplitAnswer(BaseModel):
    """A student of whom some faces are another person's."""

    status: Literal["success"] = "success"
    decision_id: int
    student_id: int = Field(description="The new student.")
    student_name: str
    provisional: bool
    split_student_id: int = Field(description="Whose the faces were.")
    crop_ids: list[int]


class HideAnswer(BaseModel):
    """A student who is a visitor."""

    status: Literal["success"] = "success"
    decision_id: int
    student_id: int
    student_name: str


class AttendanceAnswer(BaseModel):
    """What the register says of a student in a session now."""

    status: Literal["success"] = "success"
    decision_id: int
    session_id: int
    student_id: int
    student_name: str
    attendance: str | None = Field(
        description="present, absent, unsure or excused, by the class's active model; null where it has no row."
    )
    manual: bool = Field(description="Whether a person says so, and not the photos.")


class UndoAnswer(BaseModel):
    """A decision that does not count any more; of an undo, one that counts again."""

    status: Literal["success"] = "success"
    decision_id: int = Field(description="Of the undo, which can be undone too.")
    undone_decision_id: int
    undone: str = Field(description="What the decision says that was undone.")


@dataclass(frozen=True)
class DecisionService:
    """Records what a person decides, and brings assignments and attendance of every lineage up to date with it.

    Each method is one transaction under the class's lock. A student who was merged stands for the one they were merged
    into. Raises UnknownIdError for a crop, student, session or decision that is not there, ConflictError for what
    contradicts what is stored, ParameterError for a name or reason that cannot be used, ClassBusyError where somebody
    else holds the class longer than the context's patience.

    decided_by: who says so, as it is to be shown later. run_id: the Dagster run that a decision was made in.

    >>> DecisionService("ann").rename(1, "Ada Lovelace").student_name
    'Ada Lovelace'
    """

    decided_by: str
    run_id: str | None = None
    context: ServiceContext = field(default_factory=default_context, kw_only=True)

    def assign(self, crop_id: int, student_id: int, reason: str | None = None) -> CropDecisionAnswer:
        """Confirm that the crop shows the student, a second crop of the photo too: a person has said so.

        An automatic assignment of another face of the photo to the same student then needs a review.
        """
        answer = self.assign_crops([crop_id], student_id, reason)
        return CropDecisionAnswer(
            decision_id=answer.decision_id,
            crop_id=crop_id,
            student_id=answer.student_id,
            student_name=answer.student_name,
        )

    def assign_crops(self, crop_ids: Sequence[int], student_id: int, reason: str | None = None) -> CropsDecisionAnswer:
        """Confirm that each of the crops shows the student: one decision, which one undo takes back."""
        reason = clean_reason(reason)
        with self._crops(crop_ids) as (connection, session_of):
            class_id = _class_of(session_of)
            student = self._student_of_class(connection, student_id, class_id, f"face crop {crop_ids[0]}")
            kinds: dict[int, Kind] = {}
            for crop_id in session_of:
                now = decisions.current_student(connection, crop_id)
                kinds[crop_id] = "confirm" if now is not None and now[0] == student.id else "assign"
            decision_id = self._append_about(connection, class_id, reason, kinds, student.id)
            decisions.follow_what_is_said(connection, class_id, session_of)
            refresh_every_lineage(connection, class_id, _sessions(connection, session_of))
            return CropsDecisionAnswer(
                decision_id=decision_id, crop_ids=list(kinds), student_id=student.id, student_name=student.name
            )

    def unassign(self, crop_id: int, reason: str | None = None) -> CropDecisionAnswer:
        """Say that the crop is to have no student; runs leave it alone until a person assigns it."""
        answer = self._take_off([crop_id], "unassign", reason)
        return CropDecisionAnswer(decision_id=answer.decision_id, crop_id=crop_id, student_id=None, student_name=None)

    def not_a_face(self, crop_ids: Sequence[int], reason: str | None = None) -> CropsDecisionAnswer:
        """Say that the crops show no face: no run clusters, matches or counts them, until a person assigns one."""
        return self._take_off(crop_ids, "not_a_face", reason)

    def reject(self, crop_id: int, student_id: int, reason: str | None = None) -> CropDecisionAnswer:
        """Say that the crop does not show the student: no run gives it to them again, until somebody confirms it.

        A crop that had this student has none now, and the next run may match it with another.
        """
        reason = clean_reason(reason)
        with self._crops([crop_id]) as (connection, session_of):
            class_id = _class_of(session_of)
            student = self._student_of_class(connection, student_id, class_id, f"face crop {crop_id}")
            decision_id = self._append_about(connection, class_id, reason, {crop_id: "not_this_student"}, student.id)
            decisions.follow_what_is_said(connection, class_id, [crop_id])
            refresh_every_lineage(connection, class_id, _sessions(connection, session_of))
            now, name = decisions.current_student(connection, crop_id) or (None, None)
            return CropDecisionAnswer(decision_id=decision_id, crop_id=crop_id, student_id=now, student_name=name)

    def rename(self, student_id: int, name: str, reason: str | None = None) -> RenameAnswer:
        """Give a student a name; they are no longer provisional. Portraits named as before stay theirs."""
        name, reason = clean_name(name), clean_reason(reason)
        with self._student(student_id) as (connection, student):
            decision_id = rename_student(
                connection, student, name, decided_by=self.decided_by, run_id=self.run_id, reason=reason
            )
            if student.provisional:
                # Of a named student the register says absent where they were not seen.
                self._refresh_class(connection, student.class_id)
            return RenameAnswer(
                decision_id=decision_id, student_id=student.id, old_name=student.name, student_name=name
            )

    def merge(self, student_id: int, into_student_id: int, reason: str | None = None) -> MergeAnswer:
        """Say that two students are one: crops, portraits and decisions of the first count for the second.

        The name that a person gave survives, whichever of the two had it; of two such names, and of two provisional
        ones, that of the student who is kept. So do roster number and address. What was confirmed stays confirmed: a
        crop that was confirmed as one of the two and rejected for the other is confirmed anew. Where a photo shows both
        and no person has said so, the less similar face needs a review.
        """
        reason = clean_reason(reason)
        with self._student(into_student_id) as (connection, kept):
            class_id = kept.class_id
            merged = students.find_student(connection, student_id)
            if student_id == into_student_id:
                raise ConflictError(f"Student {student_id} cannot be merged into itself: name two students.")
            if merged.id == kept.id:
                raise ConflictError(
                    f"Students {student_id} and {into_student_id} are one already: {kept.name} (student {kept.id})."
                )
            if merged.id != student_id:
                raise ConflictError(
                    f"Student {student_id} was merged into {merged.name} (student {merged.id}) already: merge that one."
                )
            if merged.class_id != class_id:
                raise ConflictError(
                    f"{merged.name} and {kept.name} are of different classes: merge students of one class only."
                )
            students.keep_originals(connection, [merged.id, kept.id])
            confirmed = decisions.read_confirmations(connection, class_id)
            decision_id = self._append(
                connection,
                "merge",
                class_id,
                reason,
                student_id=merged.id,
                other_student_id=kept.id,
                old_name=kept.name,
                new_name=merged.name if kept.provisional and not merged.provisional else kept.name,
            )
            refresh_students(connection, class_id)
            students.take_number_and_email(connection, kept.id, merged.id)
            self._confirm_anew(connection, class_id, confirmed, decision_id)
            decisions.follow_what_is_said(connection, class_id, elsewhere=True)
            self._refresh_class(connection, class_id)
            one = students.find_student(connection, kept.id)
            return MergeAnswer(
                decision_id=decision_id,
                student_id=one.id,
                student_name=one.name,
                provisional=one.provisional,
                merged_student_id=merged.id,
            )

    def split(
        self,
        crop_ids: Sequence[int],
        name: str | None = None,
        reason: str | None = None,
        *,
        student_id: int | None = None,
    ) -> SplitAnswer:
        """Say that these crops of one student show another person, who is a new student from now on.

        name: the new student's; without one they are provisional. student_id: whose the crops are or may be; without it
        that follows from the crops, which must be one student's.
        """
        name, reason = None if name is None else clean_name(name), clean_reason(reason)
        with self._crops(crop_ids) as (connection, session_of):
            class_id = _class_of(session_of)
            old = self._student_of_all(connection, list(session_of), student_id)
            if name is None:
                class_name = catalog.class_by_id(connection, class_id)
                new_id = catalog.create_provisional_student(connection, class_id, class_name)
            else:
                check_name_is_free(connection, class_id, name)
                new_id = students.add_student(connection, class_id, name, None, None)
            students.keep_originals(connection, [old.id, new_id])
            new = students.find_student(connection, new_id)
            decision_id = self._append(
                connection,
                "split",
                class_id,
                reason,
                student_id=old.id,
                other_student_id=new.id,
                old_name=old.name,
                new_name=new.name,
            )
            for crop_id in session_of:
                self._append(
                    connection, "assign", class_id, None, crop_id=crop_id, student_id=new.id, part_of=decision_id
                )
            decisions.follow_what_is_said(connection, class_id, session_of)
            self._refresh_class(connection, class_id)
            return SplitAnswer(
                decision_id=decision_id,
                student_id=new.id,
                student_name=new.name,
                provisional=new.provisional,
                split_student_id=old.id,
                crop_ids=list(session_of),
            )

    def create_student(
        self, crop_ids: Sequence[int], name: str | None = None, reason: str | None = None
    ) -> CropsDecisionAnswer:
        """Say that these crops, which show nobody, show a person who is a new student from now on.

        name: the new student's; without one they are provisional. One decision, which gives the name, or else the crops,
        and has the crops as its parts: undone, it leaves a provisional student without a face, who is in no register.
        """
        name, reason = None if name is None else clean_name(name), clean_reason(reason)
        with self._crops(crop_ids) as (connection, session_of):
            class_id = _class_of(session_of)
            for crop_id in session_of:
                now = decisions.current_student(connection, crop_id)
                if now is not None:
                    raise ConflictError(
                        f"Face crop {crop_id} shows {now[1]} (student {now[0]}) already: split it off that student."
                    )
            class_name = catalog.class_by_id(connection, class_id)
            new = students.find_student(
                connection, catalog.create_provisional_student(connection, class_id, class_name)
            )
            if name is None:
                decision_id = self._append_about(
                    connection, class_id, reason, dict.fromkeys(session_of, "assign"), new.id
                )
            else:
                decision_id = rename_student(
                    connection, new, name, decided_by=self.decided_by, run_id=self.run_id, reason=reason
                )
                for crop_id in session_of:
                    self._append(
                        connection, "assign", class_id, None, crop_id=crop_id, student_id=new.id, part_of=decision_id
                    )
            decisions.follow_what_is_said(connection, class_id, session_of)
            self._refresh_class(connection, class_id)
            return CropsDecisionAnswer(
                decision_id=decision_id, crop_ids=list(session_of), student_id=new.id, student_name=name or new.name
            )

    def hide(self, student_id: int, reason: str | None = None) -> HideAnswer:
        """Say that a student is a visitor: in no register, and their face is known, so that it is nobody else's."""
        reason = clean_reason(reason)
        with self._student(student_id) as (connection, student):
            if student.hidden:
                raise ConflictError(f"{student.name} (student {student.id}) is a visitor already.")
            students.keep_originals(connection, [student.id])
            decision_id = self._append(
                connection, "hide", student.class_id, reason, student_id=student.id, old_name=student.name
            )
            refresh_students(connection, student.class_id)
            self._refresh_class(connection, student.class_id)
            return HideAnswer(decision_id=decision_id, student_id=student.id, student_name=student.name)

    def mark_attendance(
        self, session_id: int, student_id: int, status: AttendanceStatus | None, note: str | None = None
    ) -> AttendanceAnswer:
        """Say whether a student was in a session, whatever the photos show; no run changes it.

        status: None has the photos count again. Raises ConflictError for another status of a visitor.
        """
        note = clean_reason(note)
        if status is not None and status not in get_args(AttendanceStatus):
            raise ParameterError(
                f"The status {status!r} cannot be used: give present, absent, excused, or none for what the photos show."
            )
        with self._locked(lambda connection: catalog.session_by_id(connection, session_id)) as (connection, session):
            if session.is_enrolment:
                raise ConflictError(f"The session {session.name} holds portraits: name one that the class met in.")
            student = self._student_of_class(connection, student_id, session.class_id, f"session {session_id}")
            if student.hidden and status is not None:
                raise ConflictError(
                    f"{student.name} (student {student.id}) is a visitor, whom no register counts: undo decision "
                    f"{decisions.hidden_by(connection, student.id)}, which says so, first."
                )
            decision_id = self._append(
                connection,
                "attendance",
                session.class_id,
                note,
                session_id=session.id,
                student_id=student.id,
                status=status,
            )
            refresh_every_lineage(connection, session.class_id, [session.id])
            found, manual = attendance.read_cell(connection, session.id, student.id) or (None, False)
            return AttendanceAnswer(
                decision_id=decision_id,
                session_id=session.id,
                student_id=student.id,
                student_name=student.name,
                attendance=found,
                manual=manual,
            )

    def undo(self, decision_id: int, reason: str | None = None) -> UndoAnswer:
        """Take a decision back as if it had not been made; of an undo, have what it took back count again.

        What people decided since stays, and so does what runs changed since. Assignments follow from what runs found and
        from what still counts, in whatever order decisions are undone. A face of which nobody says anything any more, and
        no run has found anything, is open: the next run decides. Raises ConflictError with the remedy where the decision is a part of another one, is undone
        already, comes from a portrait, is a merge or split that a later one builds on, or gave up a name that somebody
        else has by now.
        """
        reason = clean_reason(reason)
        with self._locked(lambda connection: decisions.find_decision(connection, decision_id)) as (connection, undone):
            class_id = undone.class_id
            base = decisions.find_decision(connection, undone.base_id)
            _check_can_be_undone(connection, undone, base)
            sentence = read_decision(connection, class_id, undone.id).sentence
            confirmed = decisions.read_confirmations(connection, class_id)
            undo_id = self._append(connection, "undo", class_id, reason, undoes=undone.id)
            is_merge = base.kind == "merge" and base.student_id is not None and base.other_student_id is not None
            if is_merge and base.undone_by is None:
                # Before two students have one number.
                students.give_back_number_and_email(connection, base.other_student_id or 0, base.student_id or 0)
            if refresh_students(connection, class_id):
                self._confirm_anew(connection, class_id, confirmed, undo_id)
            if is_merge and base.undone_by is not None:
                students.take_number_and_email(connection, base.other_student_id or 0, base.student_id or 0)
            decisions.follow_what_is_said(connection, class_id, decisions.crops_of(connection, base.id), elsewhere=True)
            self._refresh_class(connection, class_id)
            return UndoAnswer(decision_id=undo_id, undone_decision_id=undone.id, undone=sentence)

    def replay(self, class_name: str) -> None:
        """Derive the class's students anew from all its decisions, then have assignments and attendance follow.

        Changes nothing where everything is as it should be.
        """
        with self.context.database.connection() as connection:
            class_id = catalog.find_class(connection, class_name)
            catalog.lock_class(connection, class_id, self.context.lock_patience_s)
            refresh_students(connection, class_id)
            decisions.follow_what_is_said(connection, class_id, elsewhere=True)
            self._refresh_class(connection, class_id)

    def _take_off(
        self, crop_ids: Sequence[int], kind: Literal["unassign", "not_a_face"], reason: str | None
    ) -> CropsDecisionAnswer:
        reason = clean_reason(reason)
        with self._crops(crop_ids) as (connection, session_of):
            class_id = _class_of(session_of)
            decision_id = self._append_about(connection, class_id, reason, dict.fromkeys(session_of, kind))
            decisions.follow_what_is_said(connection, class_id, session_of)
            refresh_every_lineage(connection, class_id, _sessions(connection, session_of))
            return CropsDecisionAnswer(
                decision_id=decision_id, crop_ids=list(session_of), student_id=None, student_name=None
            )

    @contextmanager
    def _crops(self, crop_ids: Sequence[int]) -> Iterator[tuple[Connection, dict[int, SessionRow]]]:
        """A transaction that holds the lock of the crops' class, and the session of each crop."""
        if not 1 <= len(crop_ids) <= MAX_CROPS:
            raise ParameterError(f"{len(crop_ids)} face crops were named: name 1 to {MAX_CROPS}.")
        with self._locked(lambda connection: catalog.session_of_crop(connection, crop_ids[0])) as (connection, first):
            session_of = {crop_id: catalog.session_of_crop(connection, crop_id) for crop_id in crop_ids}
            for crop_id, session in session_of.items():
                if session.class_id != first.class_id:
                    raise ConflictError(
                        f"Face crops {crop_ids[0]} and {crop_id} are of different classes: name crops of one class only."
                    )
            yield connection, session_of

    @contextmanager
    def _student(self, student_id: int) -> Iterator[tuple[Connection, Student]]:
        """A transaction that holds the lock of the student's class, and the student."""
        with self._locked(lambda connection: students.find_student(connection, student_id)) as found:
            yield found

    @contextmanager
    def _locked(self, find: Callable[[Connection], Found]) -> Iterator[tuple[Connection, Found]]:
        with self.context.database.connection() as connection:
            catalog.lock_class(connection, find(connection).class_id, self.context.lock_patience_s)
            # Again, for it may have changed, or gone, while this waited.
            yield connection, find(connection)

    def _student_of_class(self, connection: Connection, student_id: int, class_id: int, what: str) -> Student:
        student = students.find_student(connection, student_id)
        if student.class_id != class_id:
            theirs, its = (catalog.class_by_id(connection, c) for c in (student.class_id, class_id))
            raise ConflictError(
                f"{student.name} (student {student_id}) is of the class {theirs}, {what} of the class {its}: "
                f"name a student of {its}."
            )
        return student

    def _student_of_all(self, connection: Connection, crop_ids: Sequence[int], student_id: int | None) -> Student:
        """The one student whom all these crops show, or, where the student is named, may show."""
        owner = None if student_id is None else students.find_student(connection, student_id)
        for crop_id in crop_ids:
            now = decisions.current_student(connection, crop_id)
            if now is None and owner is not None:
                continue  # in doubt: whether it shows the student is what was asked
            if now is None:
                raise ConflictError(
                    f"Face crop {crop_id} shows nobody yet: assign it, a split takes faces off a student."
                )
            owner = owner or students.find_student(connection, now[0])
            if now[0] != owner.id:
                raise ConflictError(
                    f"Face crop {crop_id} shows {now[1]} (student {now[0]}), not {owner.name} (student {owner.id}): "
                    "split the faces of one student at a time."
                )
        assert owner is not None, "there is a crop"
        return owner

    def _append(self, connection: Connection, kind: Kind, class_id: int, reason: str | None, **about: Any) -> int:
        return decisions.append_decision(
            connection,
            kind,
            class_id=class_id,
            decided_by=self.decided_by,
            run_id=self.run_id,
            reason=reason,
            **about,
        )

    def _append_about(
        self,
        connection: Connection,
        class_id: int,
        reason: str | None,
        kinds: Mapping[int, Kind],
        student_id: int | None = None,
    ) -> int:
        """One decision about these crops: one row about one crop, of several a row for the whole and a part for each."""
        if len(kinds) == 1:
            ((crop_id, kind),) = kinds.items()
            return self._append(connection, kind, class_id, reason, crop_id=crop_id, student_id=student_id)
        whole: Kind = next(iter(kinds.values())) if len(set(kinds.values())) == 1 else "assign"
        decision_id = self._append(connection, whole, class_id, reason, student_id=student_id)
        for crop_id, kind in kinds.items():
            self._append(connection, kind, class_id, None, crop_id=crop_id, student_id=student_id, part_of=decision_id)
        return decision_id

    def _confirm_anew(
        self, connection: Connection, class_id: int, before: Mapping[int, tuple[int, int]], part_of: int
    ) -> None:
        """Confirm again what is said as before and does not count any more: two of whom a crop is one are one now.

        before: the confirmed crops of the class, each with its student and decision.
        """
        now = decisions.read_confirmations(connection, class_id)
        lost = {crop_id: said for crop_id, said in before.items() if crop_id not in now}
        kept = decisions.still_in_force(connection, [decision_id for _, decision_id in lost.values()])
        for crop_id, (student_id, decision_id) in lost.items():
            if decision_id in kept:
                self._append(
                    connection,
                    "confirm",
                    class_id,
                    "confirmed before the merge",
                    crop_id=crop_id,
                    student_id=student_id,
                    part_of=part_of,
                )

    def _refresh_class(self, connection: Connection, class_id: int) -> None:
        refresh_every_lineage(connection, class_id, catalog.session_ids(connection, class_id))


def _class_of(session_of: Mapping[int, SessionRow]) -> int:
    return next(iter(session_of.values())).class_id


def _sessions(connection: Connection, session_of: Mapping[int, SessionRow]) -> Collection[int]:
    """The sessions whose attendance may change: with a portrait a student leaves the class, or comes back to it."""
    if any(session.is_enrolment for session in session_of.values()):
        return catalog.session_ids(connection, _class_of(session_of))
    return {session.id for session in session_of.values()}


def _check_can_be_undone(connection: Connection, undone: Decision, base: Decision) -> None:
    """Raises ConflictError with the remedy. base: what the undo takes back, or back in force, at last."""
    if undone.part_of is not None:
        raise ConflictError(
            f"Decision {undone.id} is a part of another one: undo the whole, decision {undone.part_of}."
        )
    if undone.undone_by is not None:
        raise ConflictError(
            f"Decision {undone.id} is undone already: to have it count again, undo decision {undone.undone_by}."
        )
    if undone.decided_by == decisions.ENROLMENT:
        raise ConflictError(
            f"Decision {undone.id} says what the name of a portrait's file says: unassign its face, or move the portrait."
        )
    if base.kind in ("merge", "split") and (later := decisions.built_upon_by(connection, base)) is not None:
        raise ConflictError(
            f"Decision {later} says more of the same students than decision {undone.id}: undo decision {later} first."
        )


def rename_student(
    connection: Connection, student: Student, name: str, *, decided_by: str, run_id: str | None, reason: str | None
) -> int:
    """Record that a student has this name, perhaps the one they had, and is not provisional; returns the decision's id.

    Raises ConflictError where another student of the class has the name.
    """
    check_name_is_free(connection, student.class_id, name, student.id)
    students.keep_originals(connection, [student.id])
    decision_id = decisions.append_decision(
        connection,
        "rename",
        class_id=student.class_id,
        decided_by=decided_by,
        run_id=run_id,
        reason=reason,
        student_id=student.id,
        old_name=student.name,
        new_name=name,
    )
    refresh_students(connection, student.class_id)
    return decision_id


def check_name_is_free(connection: Connection, class_id: int, name: str, student_id: int | None = None) -> None:
    """Raises ConflictError where a student of the class other than this one has the name."""
    other = catalog.student_named(connection, class_id, name)
    if other not in (None, student_id):
        raise ConflictError(
            f"The class {catalog.class_by_id(connection, class_id)} has another student {name!r} (student {other}): "
            "merge the two, or choose another name."
        )


def clean_name(name: str) -> str:
    """A student's name as it is stored: stripped, Unicode NFC as names of portraits are.

    Raises ParameterError for an empty one, one of more than 200 characters, one without a letter or digit, or one with
    characters that cannot be seen: two such names would look the same, or turn the text around them.
    """
    cleaned = unicodedata.normalize("NFC", name).strip()
    if not cleaned:
        raise ParameterError("The name is empty: give at least one letter.")
    if len(cleaned) > MAX_NAME_LENGTH:
        raise ParameterError(f"The name has {len(cleaned)} characters: give at most {MAX_NAME_LENGTH}.")
    joiners_outside = cleaned.strip(_JOINERS) != cleaned
    formats = any(unicodedata.category(c) == "Cf" and c not in _JOINERS for c in cleaned)
    if not is_plain(cleaned) or formats or joiners_outside:
        raise ParameterError(f"The name {cleaned!r} holds characters that cannot be shown: leave them out.")
    if not any(unicodedata.category(c)[0] in "LN" and c not in _FILLERS for c in cleaned):
        raise ParameterError(f"The name {cleaned!r} has no letter or digit: give at least one.")
    return cleaned


def clean_reason(reason: str | None) -> str | None:
    """Why somebody decided so, as it is stored; raises ParameterError for one that cannot be."""
    if reason is None or not reason.strip():
        return None
    if len(reason) > MAX_REASON_LENGTH:
        raise ParameterError(f"The reason has {len(reason)} characters: give at most {MAX_REASON_LENGTH}.")
    if not is_plain(reason, allowed="\n\r\t"):
        raise ParameterError("The reason holds characters that cannot be shown: leave them out.")
    return reason.strip()


def is_plain(text: str, allowed: str = "") -> bool:
    """Whether a text is free of control characters, line separators and halves of surrogate pairs."""
    return not any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} and c not in allowed for c in text)
