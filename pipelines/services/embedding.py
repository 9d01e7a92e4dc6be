"""Turn face crops into unit vectors and store them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from pipelines.database import catalog, crops
from pipelines.database.crops import CropRow
from pipelines.errors import PhotoError
from pipelines.partitions import SessionKey
from pipelines.resources.embedding.model import EmbeddingError
from pipelines.resources.photo_reader import read_photo
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.context import ServiceContext, default_context
from pipelines.services.photo_roots import registered_store

# Vectors are written every so many crops: bounds memory, and keeps what is done when a later crop's photo kills the run.
WRITE_EVERY = 128


@dataclass
class EmbeddingReport:
    """What embedding a session did; `errors` maps crop ids to reasons."""

    crops: int = 0
    embedded: int = 0
    skipped: int = 0
    errors: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EmbeddingService:
    """Computes the vectors of one model, once per crop and version."""

    model_name: str = "facenet"
    context: ServiceContext = field(default_factory=default_context, kw_only=True)

    @property
    def version(self) -> str:
        """The version string kept with every vector."""
        return self.context.models.version(self.model_name)

    def embed_session(self, key: SessionKey, *, force: bool = False) -> EmbeddingReport:
        """Embed the session's crops, usable or not, that have no vector of the current version (all when forced).

        A crop that fails is reported and the others go on. Raises WeightsError before any work where the weights are
        missing or wrong.
        """
        version = self.version
        with self.context.database.connection() as connection:
            session = catalog.find_session(connection, key)
            rows = crops.session_crops(connection, session.id)
            done = (
                set()
                if force
                else crops.crops_with_embedding(connection, self.model_name, version, [row.id for row in rows])
            )
        report = EmbeddingReport(crops=len(rows), skipped=len(done))
        store = registered_store(self.context.database, self.context.store, key)
        batch: list[tuple[int, NDArray[np.uint8]]] = []
        for item in self._chips(store, [row for row in rows if row.id not in done], report):
            batch.append(item)
            if len(batch) == WRITE_EVERY:
                self._embed(batch, version, report)
                batch.clear()
        self._embed(batch, version, report)
        return report

    def _chips(
        self, store: PhotoStore, rows: list[CropRow], report: EmbeddingReport
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Cut each crop from its original photo by the model's own policy, reading every photo once."""
        for path, of_photo in groupby(rows, key=lambda row: row.path):
            photo_rows = list(of_photo)
            try:
                pixels = read_photo(store.read(path), path, self.context.settings.max_megapixels).pixels
            except PhotoError as error:
                report.errors.update({row.id: str(error) for row in photo_rows})
                continue
            model = self.context.models.get(self.model_name)
            for row in photo_rows:
                try:
                    yield row.id, model.cut(pixels, row.face)
                except EmbeddingError as error:
                    report.errors[row.id] = str(error)

    def _embed(self, batch: list[tuple[int, NDArray[np.uint8]]], version: str, report: EmbeddingReport) -> None:
        if not batch:
            return
        results = self.context.models.get(self.model_name).embed([chip for _, chip in batch])
        good = [(crop_id, v) for (crop_id, _), v in zip(batch, results, strict=True) if not isinstance(v, Exception)]
        report.errors.update(
            {crop_id: str(v) for (crop_id, _), v in zip(batch, results, strict=True) if isinstance(v, Exception)}
        )
        if good:
            with self.context.database.connection() as connection:
                crops.write_embeddings(
                    connection,
                    self.model_name,
                    version,
                    [crop_id for crop_id, _ in good],
                    np.stack([v for _, v in good]),
                )
            report.embedded += len(good)
