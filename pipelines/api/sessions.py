"""Sessions."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from pipelines.api.common import Browse, PageQuery, SessionId
from pipelines.api.errors import documented
from pipelines.services.browse import PageOf, SessionItem
from pipelines.services.parameters import Id

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
