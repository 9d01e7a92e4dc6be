"""Sessions, and attendance that a person marks."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from pipelines.api.common import Browse, Decisions, FreeSessionId, FromJson, PageQuery, Reason, SessionId
from pipelines.api.errors import documented
from pipelines.database.decisions import AttendanceStatus
from pipelines.services.browse import PageOf, SessionItem
from pipelines.services.decisions import AttendanceAnswer
from pipelines.services.parameters import MAX_ID, Id

router = APIRouter(prefix="/sessions", tags=["sessions"])


class SessionQuery(PageQuery):
    """Which sessions."""

    class_id: Id | None = Field(default=None, description="Only sessions of this class.")


@router.get("/", responses=documented())
def list_sessions(browse: Browse, query: Annotated[SessionQuery, Query()]) -> PageOf[SessionItem]:
    """Sessions; the one that holds a class's portraits is there too (`is_enrolment`)."""
    return browse.sessions(query.limit, query.offset, query.class_id)


@router.get("/{id}/", responses=documented(404))
def get_session(session_id: SessionId, browse: Browse) -> SessionItem:
    """One session."""
    return browse.session(session_id)


class Mark(BaseModel):
    """Whether a student was there."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"status": "excused"}]})

    status: AttendanceStatus | None = Field(description="null: what the photos show counts again.")
    note: Reason = None


MarkBody = Annotated[Mark, FromJson, Body()]
MarkedStudentId = Annotated[
    int, Path(alias="student_id", ge=1, le=MAX_ID, description="Id of the student.", examples=[1])
]


@router.put("/{id}/attendance/{student_id}/", responses=documented(400, 404, 409, 413))
def mark_attendance(
    session_id: FreeSessionId, student_id: MarkedStudentId, mark: MarkBody, decisions: Decisions
) -> AttendanceAnswer:
    """Say whether a student was in the session, whatever the photos show; no run changes it."""
    return decisions.mark_attendance(session_id, student_id, mark.status, mark.note)
