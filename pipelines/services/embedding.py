"""Turn face crops into unit vectors and store them."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.database import catalog, crops, identities
from pipelines.database.crops import CropRow
from pipelines.errors import AttendanseeError, ParameterError, PhotoError, UnknownIdError
from pipelines.faces.similarity import cosine_similarity_matrix
from pipelines.partitions import SessionKey
from pipelines.resources.embedding.model import EmbeddingError
from pipelines.resources.embedding.registry import get_spec
from pipelines.resources.face_detector import FaceDetector
from pipelines.resources.photo_reader import read_photo
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.answers import BatchEmbeddingAnswer, CropEmbedding, EmbeddingAnswer, batch_status
from pipelines.services.context import ServiceContext, default_context
from pipelines.services.parameters import SimilarityScale
from pipelines.services.photo_roots import registered_store

# Vectors are written every so many crops: bounds memory, and keeps what is done when a later crop's photo kills the run.
WRITE_EVERY = 128


@dataclass
class EmbeddingReport:
    """What embedding did; `errors` maps crop ids to reasons."""

    crops: int = 0
    embedded: int = 0
    skipped: int = 0
    errors: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EmbeddingService:
    """Computes the vectors of one model, once per crop and version.

    Raises ModelError, which names those that there are, for a model that is not known.
    """

    model_name: str = "facenet"
    context: ServiceContext = field(default_factory=default_context, kw_only=True)

    def __post_init__(self) -> None:
        get_spec(self.model_name)

    @property
    def version(self) -> str:
        """The version string kept with every vector."""
        return self.context.models.version(self.model_name)

    def embed_session(self, key: SessionKey, *, force: bool = False) -> EmbeddingReport:
        """Embed the session's crops, usable or not, that have no vector of the current version (all when forced).

        A crop that fails is reported and the others go on. Raises WeightsError before any work where the weights are
        missing or wrong, AttendanseeError where nobody has looked for faces in one of the photos.

        >>> EmbeddingService("dlib").embed_session(SessionKey("Math101", "2026-09-07")).skipped
        8
        """
        with self.context.database.connection() as connection:
            session = catalog.find_session(connection, key)
            if any(
                not i.refused_reason and i.searched_with is None for i in catalog.session_images(connection, session.id)
            ):
                # Else everybody would be absent whom its photos show.
                raise AttendanseeError(
                    f"The photos of {key} were not searched for faces yet: materialise its face_crops first."
                )
            rows = crops.session_crops(connection, session.id)
        return self._embed_rows(rows, set() if force else self._embedded(rows))

    def embed_missing(self, crop_ids: Collection[int]) -> dict[int, str]:
        """Give each of these crops a vector of the current version; returns the reason for each that cannot have one.

        >>> EmbeddingService("dlib").embed_missing([1, 2])
        {}
        """
        with self.context.database.connection() as connection:
            done = crops.crops_with_embedding(connection, self.model_name, self.version, list(crop_ids))
            rows = crops.crops_by_id(connection, [crop_id for crop_id in crop_ids if crop_id not in done])
        return self._embed_rows(rows, set()).errors

    def embed_portraits(self, class_name: str) -> dict[int, str]:
        """Give the class's portraits and other confirmed crops vectors, for all sessions are compared with them.

        Returns the reason for each that cannot have one.

        >>> EmbeddingService("dlib").embed_portraits("Math101")
        {}
        """
        with self.context.database.connection() as connection:
            class_id = catalog.find_class(connection, class_name)
            bare = identities.portraits_without_embedding(connection, class_id, self.model_name, self.version)
        return self.embed_missing(bare) if bare else {}

    def generate_crop_embedding(self, crop_id: int, force_regenerate: bool = False) -> EmbeddingAnswer:
        """Embed one stored crop; one that has a vector already is skipped unless forced.

        Raises UnknownIdError for an id that is not there, WeightsError where the model's weights are missing.

        >>> EmbeddingService("dlib").generate_crop_embedding(crop_id=1).status
        'skipped'
        """
        with self.context.database.connection() as connection:
            if not crops.crops_by_id(connection, [crop_id]):
                raise UnknownIdError(_unknown(crop_id))
        (result,) = self.generate_crop_embeddings([crop_id], force_regenerate).results
        spec = get_spec(self.model_name)
        messages = {
            "success": f"The crop has a vector of {spec.dimension} numbers by {spec.name}.",
            "skipped": "The crop has a vector already: force_regenerate computes it again.",
        }
        return EmbeddingAnswer(
            status=result.status,
            crop_id=crop_id,
            embedding_model=spec.name,
            embedding_dimension=spec.dimension,
            message=result.reason or messages[result.status],
        )

    def generate_crop_embeddings(
        self, face_crop_ids: Sequence[int], force_regenerate: bool = False
    ) -> BatchEmbeddingAnswer:
        """Embed many stored crops, each once; one that fails is reported and the others go on.

        Vectors are stored every WRITE_EVERY crops, so that a second call goes on where a broken one ended.

        >>> answer = EmbeddingService("dlib").generate_crop_embeddings([1, 2, 99])
        >>> answer.skipped, answer.errors, answer.results[2].reason
        (2, 1, 'There is no face crop 99.')
        """
        self.context.models.require(self.model_name)
        wanted = list(dict.fromkeys(face_crop_ids))
        with self.context.database.connection() as connection:
            rows = crops.crops_by_id(connection, wanted)
        done = set() if force_regenerate else self._embedded(rows)
        report = self._embed_rows(rows, done)
        there = {row.id for row in rows}
        reasons = {**{crop_id: _unknown(crop_id) for crop_id in wanted if crop_id not in there}, **report.errors}

        def result(crop_id: int) -> CropEmbedding:
            if crop_id in reasons:
                return CropEmbedding(crop_id=crop_id, status="error", reason=reasons[crop_id])
            return CropEmbedding(crop_id=crop_id, status="skipped" if crop_id in done else "success")

        return BatchEmbeddingAnswer(
            status=batch_status(len(reasons), len(wanted)),
            total=len(wanted),
            success=report.embedded,
            skipped=report.skipped,
            errors=len(reasons),
            model_name=self.model_name,
            results=[result(crop_id) for crop_id in wanted],
        )

    def generate_embedding(self, image: NDArray[np.uint8] | str | Path) -> NDArray[np.float32]:
        """The vector of the largest face in an image: float32 (dimension,) of norm 1.

        image: (H, W, 3) uint8 RGB, or the path of a photo. Raises PhotoError where it cannot be read or shows no face.

        >>> EmbeddingService("dlib").generate_embedding("portrait.jpg").shape
        (128,)
        """
        name = "image"
        if isinstance(image, str | Path):
            name = str(image)
            try:
                data = Path(image).read_bytes()
            except OSError as error:
                raise PhotoError(f"The photo {name!r} cannot be read: {error.strerror}.") from error
            image = read_photo(data, name, self.context.settings.max_megapixels).pixels
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise PhotoError(
                f"The image cannot be used: it is {pixels.dtype} of shape {pixels.shape}, not uint8 RGB (height, width, 3)."
            )
        faces = FaceDetector.from_settings(self.context.settings).detect(pixels)
        if not faces:
            raise PhotoError(f"No face was found in {name!r}: use a photo that shows the face with some background.")
        model = self.context.models.get(self.model_name)
        largest = max(faces, key=lambda face: face.box[2] * face.box[3])
        (vector,) = model.embed([model.cut(pixels, largest)])
        if isinstance(vector, EmbeddingError):
            raise vector
        return vector

    def calculate_similarity(self, a: ArrayLike, b: ArrayLike, scale: SimilarityScale = "calibrated") -> float:
        """How alike two vectors of this model are, in [0, 1] (calibrated) or [-1, 1] (cosine).

        a, b: (dimension,). Raises ParameterError where they are no two vectors of one length, ValueError when one is zero
        or not finite.

        >>> EmbeddingService("dlib").calculate_similarity([1, 0], [1, 0], scale="cosine")
        1.0
        """
        if scale not in ("calibrated", "cosine"):
            raise ValueError(f"There is no similarity scale {scale!r}: choose calibrated or cosine.")
        first, second = np.asarray(a), np.asarray(b)
        if first.ndim != 1 or first.shape != second.shape:
            raise ParameterError(
                f"Vectors of shapes {first.shape} and {second.shape} cannot be compared: give two of the same model, "
                "(dimension,) each."
            )
        cosine = float(cosine_similarity_matrix(first[None], second[None])[0, 0])
        return cosine if scale == "cosine" else get_spec(self.model_name).calibrated(cosine)

    def find_best_match(
        self, query: ArrayLike, candidates: ArrayLike, scale: SimilarityScale = "calibrated"
    ) -> tuple[int, float]:
        """The index of the candidate most like the query, and how alike they are (see calculate_similarity).

        query: (dimension,); candidates: (n, dimension). The first of equals wins. Raises ParameterError where they are not
        of one length, ValueError for no candidates.

        >>> EmbeddingService("dlib").find_best_match([1, 0], [[0, 1], [1, 0]], scale="cosine")
        (1, 1.0)
        """
        vectors = np.atleast_2d(candidates)
        if vectors.size == 0:
            raise ValueError("There are no candidates to match with.")
        one = np.asarray(query)
        if vectors.ndim != 2 or one.shape != vectors.shape[1:]:
            raise ParameterError(
                f"A query of shape {one.shape} cannot be compared with candidates of shape {vectors.shape}: give vectors "
                "of the same model, (dimension,) and (n, dimension)."
            )
        index = int(cosine_similarity_matrix(one[None], vectors)[0].argmax())
        return index, self.calculate_similarity(query, vectors[index], scale)

    def _embedded(self, rows: Sequence[CropRow]) -> set[int]:
        with self.context.database.connection() as connection:
            return crops.crops_with_embedding(connection, self.model_name, self.version, [row.id for row in rows])

    def _embed_rows(self, rows: Sequence[CropRow], done: set[int]) -> EmbeddingReport:
        """Embed and store the crops other than `done`."""
        version = self.version
        report = EmbeddingReport(crops=len(rows), skipped=len(done))
        missing = [row for row in rows if row.id not in done]
        batch: list[tuple[int, NDArray[np.uint8]]] = []
        for item in self._chips(missing, report):
            batch.append(item)
            if len(batch) == WRITE_EVERY:
                self._embed(batch, version, report)
                batch.clear()
        self._embed(batch, version, report)
        return report

    def _chips(self, rows: Sequence[CropRow], report: EmbeddingReport) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Cut each crop from its original photo by the model's own policy, reading every photo once."""
        stores: dict[str, PhotoStore] = {}
        for path, of_photo in groupby(rows, key=lambda row: row.path):
            photo_rows = list(of_photo)
            class_name = photo_rows[0].class_name
            if class_name not in stores:
                stores[class_name] = registered_store(self.context.database, self.context.store, class_name)
            try:
                pixels = read_photo(stores[class_name].read(path), path, self.context.settings.max_megapixels).pixels
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


def _unknown(crop_id: int) -> str:
    return f"There is no face crop {crop_id}."
