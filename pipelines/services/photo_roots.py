"""Where a class's photos lie: what a run says, else where they were when they were last registered."""

from pipelines.database import catalog
from pipelines.errors import PhotoStoreError
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.photo_store import PhotoStore


def store_of(database: Database, store: PhotoStore, key: SessionKey) -> PhotoStore:
    """The store to read this class's photos from.

    A run started in the UI names no photo root; the class remembers the one it was registered from. Raises
    PhotoStoreError where neither is known.
    """
    if store.photos:
        return store
    with database.connection() as connection:
        root = catalog.photo_root(connection, key.class_name)
    if root is None:
        raise PhotoStoreError(
            f"No photo root is known for the class {key.class_name}: set ATTENDANSEE_PHOTOS or the resource photo_store."
        )
    return store.model_copy(update={"photos": root})
