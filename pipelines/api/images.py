"""Photos: what is known of them; the photos themselves stay where they are."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from pipelines.api.common import Browse, ImageId, PageQuery
from pipelines.api.errors import documented
from pipelines.services.browse import ImageItem, PageOf
from pipelines.services.parameters import Id

router = APIRouter(prefix="/images", tags=["photos"])


class ImageQuery(PageQuery):
    """Which photos."""

    session_id: Id | None = Field(default=None, description="Only photos of this session.")


@router.get("/", responses=documented())
def list_images(browse: Browse, query: Annotated[ImageQuery, Query()]) -> PageOf[ImageItem]:
    """Photos that are still in the photo root; those that cannot be used say why."""
    return browse.images(query.limit, query.offset, query.session_id)


@router.get("/{id}/", responses=documented(404))
def get_image(image_id: ImageId, browse: Browse) -> ImageItem:
    """One photo."""
    return browse.image(image_id)
