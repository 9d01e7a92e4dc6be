"""What the benchmarks of the way from photos to vectors share: photos of a class, and a place to work that goes away."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from embedding import settings_with_weights

from pipelines.database import embedded
from pipelines.demo_photos import CLASS_NAME, make_demo_photos
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.resources.face_detector import FaceDetector
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.context import ServiceContext
from pipelines.services.detection import DetectionService
from pipelines.services.embedding import EmbeddingService
from pipelines.services.intake import register_session_images
from pipelines.settings import PROJECT_ROOT, Settings, get_settings

LABELLED_CLASS = PROJECT_ROOT.parent / "shared" / "data" / "faces" / "sessions" / "caltech_class"


@dataclass(frozen=True)
class Workplace:
    """A photo root, a database and weights of our own, used through the services that the pipeline's assets call."""

    folder: Path
    weights_dir: Path
    settings: Settings
    database: Database
    store: PhotoStore

    def class_photos(self) -> tuple[list[Path], str]:
        """The class photos in ../shared, else the demo's, and a word on which they are."""
        photos = sorted(LABELLED_CLASS.glob("session_*/*.jpg"))
        if photos:
            return photos, "../shared"
        make_demo_photos(self.folder / "demo")
        return sorted((self.folder / "demo" / CLASS_NAME).glob("2*/*.jpg")), "the demo"

    def add_session(self, name: str, photos: Sequence[Path]) -> SessionKey:
        """Put photos into the photo root as a session of the class `Class`, and register them."""
        folder = self.folder / "photos" / "Class" / name
        folder.mkdir(parents=True)
        for index, photo in enumerate(photos):
            shutil.copyfile(photo, folder / f"{index}{photo.suffix}")
        key = SessionKey("Class", name)
        register_session_images(self.database, self.store, self.settings, key)
        return key

    def detection(self) -> DetectionService:
        """What finds faces and keeps their crops."""
        return DetectionService(self.database, self.store, FaceDetector.from_settings(self.settings), self.settings)

    def embedding(self, model: str) -> tuple[EmbeddingService, str]:
        """What turns crops into stored vectors, its network loaded, and a word on the weights."""
        settings, weights = settings_with_weights(model, self.weights_dir)
        context = ServiceContext(self.database, self.store, EmbeddingModels.from_settings(settings), settings)
        context.models.get(model).embed([np.zeros((8, 8, 3), np.uint8)])
        return EmbeddingService(model, context=context), weights


@contextmanager
def workplace(weights_dir: Path | None) -> Iterator[Workplace]:
    """A place to work in a temporary folder; random weights and converted files go to `weights_dir` if that is given."""
    with tempfile.TemporaryDirectory(prefix="attendansee-benchmark-") as name:
        folder = Path(name)
        os.environ["ATTENDANSEE_HOME"] = str(folder / "home")
        os.environ.pop("DATABASE_URL", None)
        get_settings.cache_clear()
        store = PhotoStore(photos=str(folder / "photos"), crops=str(folder / "crops"))
        try:
            yield Workplace(folder, weights_dir or folder / "weights", get_settings(), Database(), store)
        finally:
            embedded.remove(folder / "home" / "postgres")
