"""Classes and their registers."""

from fastapi import APIRouter

from pipelines.api.common import Browse, ClassId, Context, Paging
from pipelines.api.errors import documented
from pipelines.services.browse import ClassItem, PageOf, RegisterAnswer

router = APIRouter(prefix="/classes", tags=["classes"])


@router.get("/", responses=documented())
def list_classes(browse: Browse, page: Paging) -> PageOf[ClassItem]:
    """All classes."""
    return browse.classes(page.limit, page.offset)


@router.get("/{id}/", responses=documented(404))
def get_class(class_id: ClassId, browse: Browse) -> ClassItem:
    """One class."""
    return browse.class_(class_id)


@router.get("/{id}/attendance/", responses=documented(404))
def get_attendance(class_id: ClassId, browse: Browse, context: Context) -> RegisterAnswer:
    """Who was there: the class's register by its active model."""
    return browse.register(class_id, context.settings.model)
