"""Find the faces in a session's photos, keep them as crops, and say which are good enough to be clustered."""

from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection

from pipelines.database import catalog, crops, embedding_tables
from pipelines.database.catalog import Image
from pipelines.database.confirmations import words_left_behind
from pipelines.database.crops import EarlierCrop
from pipelines.errors import PhotoError, PhotoStoreError
from pipelines.faces.alignment import DLIB_150, five_point_chip
from pipelines.faces.face import DetectedFace
from pipelines.faces.metrics import match_boxes
from pipelines.faces.quality import QualityGate, sharpness, yaw_degrees
from pipelines.faces.replaced_photos import EarlierFace, faces_found_again
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.face_detector import FaceDetector
from pipelines.resources.photo_reader import read_photo
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.photo_roots import registered_store
from pipelines.settings import Settings

# A portrait's second face may be a passer-by in the background; one nearly as large leaves open who is meant.
EQUAL_FACES_AREA_RATIO = 0.6
# How much of the surroundings a stored crop shows on each side, as a share of the box.
CROP_MARGIN = 0.3


@dataclass
class DetectionReport:
    """What searching a session's photos found; `refused` maps paths to reasons.

    carried_crops: faces found again in photos that were saved anew, with all that was said of them. left_behind: paths of
    replaced photos with what was said of faces that were not.
    """

    photos_searched: int = 0
    photos_skipped: int = 0
    new_crops: int = 0
    carried_crops: int = 0
    restored_crops: int = 0
    crops: int = 0
    usable: int = 0
    unusable_reasons: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    left_behind: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DetectionService:
    """Detects faces, once per photo and detector version."""

    database: Database
    store: PhotoStore
    detector: FaceDetector
    settings: Settings

    def detect_session(self, key: SessionKey) -> DetectionReport:
        """Search those of the session's photos that this version of the detector has not searched yet.

        A photo that fails is refused with its reason and the others go on. An enrolment portrait keeps its largest
        face, confirmed as the student the photo is named after. A photo that has taken the place of another one under the
        same path takes over the crops of those faces that it shows in the same picture.
        """
        report = DetectionReport()
        store = registered_store(self.database, self.store, key.class_name)
        with self.database.connection() as connection:
            session = catalog.find_session(connection, key)
            images = catalog.session_images(connection, session.id)
        for image in images:
            if image.refused_reason is None and image.searched_with == self.detector.version:
                report.photos_skipped += 1
            elif image.refused_reason is None:
                try:
                    new, carried = self._search(store, key, session.class_id, image)
                    report.new_crops += new
                    report.carried_crops += carried
                    report.photos_searched += 1
                except PhotoError as error:
                    with self.database.connection() as connection:
                        catalog.refuse_image(connection, image.id, str(error))
        report.restored_crops = self._restore_crops(store, key, session.id)
        with self.database.connection() as connection:
            # Before any row is held: a search of the same photos takes the class first, then its rows.
            catalog.lock_class(connection, session.class_id)
            self._gate(connection, session.id, report)
            if key.is_enrolment:
                # For every portrait, searched now or before: its file may have been renamed after somebody else.
                crops.confirm_portraits(connection, session.id, session.class_id)
            report.refused = {
                image.path: image.refused_reason
                for image in catalog.session_images(connection, session.id)
                if image.refused_reason
            }
            report.left_behind = words_left_behind(connection, key.class_name, session.id)
        return report

    def _search(self, store: PhotoStore, key: SessionKey, class_id: int, image: Image) -> tuple[int, int]:
        """Returns how many crops are new, and how many were another photo's that lay here."""
        pixels = read_photo(store.read(image.path), image.path, self.settings.max_megapixels).pixels
        faces = self.detector.detect(pixels)
        if key.is_enrolment:
            faces = [the_portrayed(faces, image.path)]
        # A file is named by photo and place, so that a search that was killed leaves nothing that the next does not
        # write again; files that are no longer needed go once the rows that name them are gone for good.
        folder = f"{key.class_name}/{key.session_name}/{image.sha256[:16]}"
        paths = [
            store.write_crop(f"{folder}-{face.box[0]:.0f}-{face.box[1]:.0f}", cut_out(pixels, face)) for face in faces
        ]
        with self.database.connection() as connection:
            earlier = crops.earlier_crops(connection, image.id)
        carried = self._found_again(store, earlier, pixels, faces)
        with self.database.connection() as connection:
            catalog.lock_class(connection, class_id)
            if crops.lock_image(connection, image.id) == self.detector.version:
                return 0, 0  # Another run searched it meanwhile.
            stored = crops.image_crops(connection, image.id)
            # A newer detector's boxes take over the crops at their places, and with them who they are.
            pairs = dict(match_boxes(_boxes(faces), np.array([c.face.box for c in stored]).reshape(-1, 4)))
            known = {index: stored[pair].id for index, pair in pairs.items()}
            still_there = {old.crop.id for old in crops.earlier_crops(connection, image.id)}
            moved = {
                index: old.crop for index, old in carried.items() if index not in known and old.crop.id in still_there
            }
            crops.move_crops(connection, [crop.id for crop in moved.values()], image.id)
            known |= {index: crop.id for index, crop in moved.items()}
            for index, (face, path) in enumerate(zip(faces, paths, strict=True)):
                quality = {"sharpness": _sharpness(pixels, face), "yaw": yaw_degrees(face.landmarks)}
                if index in known:
                    crop_id = known[index]
                    crops.update_crop(connection, crop_id, face, path, **quality)
                    embedding_tables.delete_embeddings(connection, crop_id)
                else:
                    crop_id = crops.insert_crop(connection, image.id, face, path, **quality)
            matched = set(pairs.values())
            unseen = [crop.id for index, crop in enumerate(stored) if index not in matched]
            kept = crops.delete_crops_without_decisions(connection, unseen)
            crops.mark_searched(connection, image.id, self.detector.version)
        before = {crop.crop_path for crop in (*stored, *moved.values())}
        for unused in before - {crop.crop_path for crop in kept} - set(paths):
            if unused is not None:
                store.delete_crop(unused)
        return len(faces) - len(known), len(moved)

    def _found_again(
        self, store: PhotoStore, earlier: list[EarlierCrop], pixels: NDArray[np.uint8], faces: list[DetectedFace]
    ) -> dict[int, EarlierCrop]:
        """Index of a face -> the earlier crop that shows it in the same picture, as far as pictures are kept."""
        pictured: list[tuple[EarlierCrop, EarlierFace]] = []
        for old in earlier:
            path = old.crop.crop_path
            if path is None:
                continue
            try:
                picture = read_photo(store.read_crop(path), path, self.settings.max_megapixels).pixels
            except (PhotoError, PhotoStoreError):
                continue  # Gone, and so is the photo it was cut out of: what was said of it is told as left behind.
            box_size, photo_size = (old.crop.width, old.crop.height), (old.width, old.height)
            pictured.append((old, EarlierFace(picture, box_size, photo_size, old.spoken_of)))
        pairs = faces_found_again([face for _, face in pictured], pixels, faces)
        return {index: pictured[pair][0] for index, pair in pairs}

    def _restore_crops(self, store: PhotoStore, key: SessionKey, session_id: int) -> int:
        """Write the crops' files anew that somebody has deleted; returns how many."""
        with self.database.connection() as connection:
            rows = crops.session_crops(connection, session_id)
        kept = store.crop_paths(f"{key.class_name}/{key.session_name}") if rows else set()
        lost = [row for row in rows if row.crop_path is not None and row.crop_path not in kept]
        restored = 0
        for path, of_photo in groupby(lost, key=lambda row: row.path):
            try:
                pixels = read_photo(store.read(path), path, self.settings.max_megapixels).pixels
            except PhotoError:
                continue  # Gone or changed since it was registered: the next registration tells of it.
            for row in of_photo:
                store.write_crop((row.crop_path or "").removesuffix(".jpg"), cut_out(pixels, row.face))
                restored += 1
        return restored

    def _gate(self, connection: Connection, session_id: int, report: DetectionReport) -> None:
        """Apply the quality gate to every crop of the session, for its settings may have changed since."""
        gate = QualityGate(
            min_size=self.settings.quality_min_size,
            min_sharpness=self.settings.quality_min_sharpness,
            min_confidence=self.settings.quality_min_confidence,
            max_yaw=self.settings.quality_max_yaw,
        )
        for crop in crops.session_crops(connection, session_id):
            reasons = gate.reasons(
                size=min(crop.width, crop.height),
                sharpness=crop.sharpness,
                confidence=crop.confidence,
                yaw=crop.yaw,
            )
            if reasons != crop.unusable_reasons:
                crops.set_unusable_reasons(connection, crop.id, reasons)
            report.crops += 1
            report.usable += not reasons
            for reason in reasons:
                report.unusable_reasons[reason] = report.unusable_reasons.get(reason, 0) + 1


def the_portrayed(faces: list[DetectedFace], path: str) -> DetectedFace:
    """The largest face of an enrolment portrait; raises PhotoError where there is none or several are equally large."""
    if not faces:
        raise PhotoError(
            f"No face was found in the portrait {path}: replace it with a clear photo of the student alone."
        )
    largest, *others = sorted(faces, key=lambda face: -face.box[2] * face.box[3])
    if others and others[0].box[2] * others[0].box[3] > EQUAL_FACES_AREA_RATIO * largest.box[2] * largest.box[3]:
        raise PhotoError(
            f"The portrait {path} shows several faces of about the same size: crop it so that it shows the student alone."
        )
    return largest


def cut_out(pixels: NDArray[np.uint8], face: DetectedFace) -> NDArray[np.uint8]:
    """The (h, w, 3) part of the photo that shows the face with some surroundings, for people to look at."""
    x, y, width, height = face.box
    top, bottom = int(max(0, y - CROP_MARGIN * height)), int(y + (1 + CROP_MARGIN) * height) + 1
    left, right = int(max(0, x - CROP_MARGIN * width)), int(x + (1 + CROP_MARGIN) * width) + 1
    return pixels[top:bottom, left:right]


def _sharpness(pixels: NDArray[np.uint8], face: DetectedFace) -> float:
    """The face's sharpness; 0, and so unusable, where its landmarks are of no use for cutting it out."""
    try:
        return sharpness(five_point_chip(pixels, face.landmarks, DLIB_150, 150))
    except ValueError:
        return 0.0


def _boxes(faces: list[DetectedFace]) -> NDArray[np.float64]:
    return np.array([face.box for face in faces], dtype=np.float64).reshape(-1, 4)
