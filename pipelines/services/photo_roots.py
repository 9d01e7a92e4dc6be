"""Where a class's photos lie: what a run says, else where they were when they were last registered."""

from pipelines.database import catalog
from pipelines.errors import PhotoStoreError
from pipelines.resources.database import Database
from pipelines.resources.photo_store import PhotoStore


def store_of(database: Database, store: PhotoStore, class_name: str) -> PhotoStore:
    """The store to register this class's photos from: the root that the run or ATTENDANSEE_PHOTOS names, else the
    remembered one. Raises PhotoStoreError where neither is known.
    """
    return store if store.photos else registered_store(database, store, class_name)


def registered_store(database: Database, store: PhotoStore, class_name: str) -> PhotoStore:
    """The store that the class's photos were registered from, whatever root is set now."""
    with database.connection() as connection:
        root = catalog.photo_root(connection, class_name)
    if root is None:
        raise PhotoStoreError(
            f"No photo root is known for the class {class_name}: set ATTENDANSEE_PHOTOS or the resource photo_store."
        )
    return store.model_copy(update={"photos": root})
