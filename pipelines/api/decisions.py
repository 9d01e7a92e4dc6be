"""What people have decided, and taking it back."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from pipelines.api.common import Browse, Decisions, FreeDecisionId, PageQuery, ReasonBody
from pipelines.api.errors import documented
from pipelines.services.decision_log import DecisionLog
from pipelines.services.decisions import UndoAnswer
from pipelines.services.parameters import Id

router = APIRouter(prefix="/decisions", tags=["decisions"])


class DecisionQuery(PageQuery):
    """Whose decisions."""

    class_id: Id = Field(description="The class that they are about.")


@router.get("/", responses=documented(404))
def list_decisions(browse: Browse, query: Annotated[DecisionQuery, Query()]) -> DecisionLog:
    """What people have decided about a class, the newest first; a decision about several face crops is one."""
    return browse.decisions(query.class_id, query.limit, query.offset)


@router.post("/{id}/undo/", responses=documented(400, 404, 409, 413))
def undo_decision(decision_id: FreeDecisionId, why: ReasonBody, decisions: Decisions) -> UndoAnswer:
    """Take a decision back as if it had not been made; of an undo, have what that took back count again."""
    return decisions.undo(decision_id, why.reason)
