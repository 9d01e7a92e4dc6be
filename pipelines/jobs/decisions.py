"""What people decide about faces, students and attendance, as jobs: one op each, answering in the run's metadata."""

from pydantic import BaseModel

from pipelines.jobs.operations import build_operation_job
from pipelines.jobs.students import DECIDED_BY
from pipelines.services.context import ServiceContext
from pipelines.services.decision_parameters import (
    ConfirmCrops,
    CreateStudent,
    HideStudent,
    MarkAttendance,
    MarkNotAFace,
    SplitStudent,
    UndoDecision,
)
from pipelines.services.decisions import DecisionService
from pipelines.services.operations import Operation


def _service(context: ServiceContext, run_id: str | None) -> DecisionService:
    return DecisionService(DECIDED_BY, run_id, context=context)


def _undo(context: ServiceContext, p: UndoDecision, run_id: str | None) -> BaseModel:
    return _service(context, run_id).undo(p.decision_id, p.reason)


def _confirm(context: ServiceContext, p: ConfirmCrops, run_id: str | None) -> BaseModel:
    return _service(context, run_id).assign_crops(p.crop_ids, p.student_id, p.reason)


def _not_a_face(context: ServiceContext, p: MarkNotAFace, run_id: str | None) -> BaseModel:
    return _service(context, run_id).not_a_face(p.crop_ids, p.reason)


def _split(context: ServiceContext, p: SplitStudent, run_id: str | None) -> BaseModel:
    return _service(context, run_id).split(p.crop_ids, p.name, p.reason, student_id=p.student_id)


def _create(context: ServiceContext, p: CreateStudent, run_id: str | None) -> BaseModel:
    return _service(context, run_id).create_student(p.crop_ids, p.name, p.reason)


def _hide(context: ServiceContext, p: HideStudent, run_id: str | None) -> BaseModel:
    return _service(context, run_id).hide(p.student_id, p.reason)


def _mark(context: ServiceContext, p: MarkAttendance, run_id: str | None) -> BaseModel:
    status = None if p.status == "photos" else p.status
    return _service(context, run_id).mark_attendance(p.session_id, p.student_id, status, p.note)


DECISION_JOBS = {
    operation.name: build_operation_job(operation)
    for operation in (
        Operation(
            "undo_decision", "Take a decision back as if it had not been made; an undo too.", UndoDecision, _undo
        ),
        Operation(
            "confirm_crops", "Say that face crops show a student; no run says otherwise.", ConfirmCrops, _confirm
        ),
        Operation(
            "mark_not_a_face",
            "Say that face crops show no face: no run takes them into account.",
            MarkNotAFace,
            _not_a_face,
        ),
        Operation(
            "split_student", "Say that some faces of a student are another person's, who is new.", SplitStudent, _split
        ),
        Operation(
            "create_student", "Say that face crops that show nobody are a new student's.", CreateStudent, _create
        ),
        Operation("hide_student", "Say that a student is a visitor: in no register.", HideStudent, _hide),
        Operation(
            "mark_attendance",
            "Say whether a student was in a session, whatever the photos show.",
            MarkAttendance,
            _mark,
        ),
    )
}
