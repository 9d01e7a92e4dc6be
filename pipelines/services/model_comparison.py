"""Two models' lineages of a class side by side: what each covers, where they disagree, what people have said."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection
from pydantic import BaseModel, Field

from pipelines.database import catalog, crops, decisions, identities, lineages
from pipelines.database.identities import GalleryCrop, State
from pipelines.database.lineages import Place
from pipelines.errors import ConflictError
from pipelines.faces.assignment import Decision, assign_one_to_one, knn_votes
from pipelines.faces.similarity import cosine_similarity_matrix
from pipelines.resources.database import Database, read_one_state
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.services.attendance import Register, read_register
from pipelines.services.coverage import Coverage, read_coverage
from pipelines.services.session_assignment import AssignmentConfig
from pipelines.services.thresholds import class_spec

# Confirmed crops compared with the whole gallery at a time: 20,000 crops of gallery make 40 MB of similarities.
_BLOCK = 512

COLUMNS = (
    *("what", "session", "face_crop_id", "student"),
    *("old_answer", "old_student", "old_confidence", "new_answer", "new_student", "new_confidence", "contradicts"),
)


@dataclass(frozen=True)
class Answer:
    """What a model says about one crop; similarity on the calibrated scale, None where it has none."""

    state: State
    student_id: int | None = None
    similarity: float | None = None


class CropAnswer(BaseModel):
    """What a model says about one crop."""

    state: State
    student: str | None
    confidence: float | None = Field(description="On the calibrated scale of the model and class.")


class Disagreement(BaseModel):
    """A face about which the models differ, or the new one differs from a person.

    Of a confirmed face, what each model says without the confirmation.
    """

    face_crop_id: int
    session: str
    confirmed: str | None = Field(description="Whom it shows, as a person has said.")
    old: CropAnswer | None
    new: CropAnswer | None
    contradicts: bool = Field(description="The new model takes it for another student than the person.")


class AttendanceChange(BaseModel):
    """A cell of the register that would change; an empty status is one that is not there."""

    session: str
    student: str
    old: str
    new: str


class Thresholds(BaseModel):
    """Cosine distances in use for the class."""

    clustering_distance: float
    assignment_distance: float
    verification_threshold: float
    review_margin: float


class ConfirmedAnswers(BaseModel):
    """What a model says about confirmed faces without the confirmation."""

    same_student: int
    other_student: int = Field(description="These contradict a person.")
    needs_review: int
    nobody: int
    not_embedded: int


class Lineage(BaseModel):
    """What one model's lineage covers and uses."""

    model: str
    version: str
    sessions_covered: int
    crops_embedded: int
    lacking: dict[str, str] = Field(description="What each session lacks.")
    thresholds: Thresholds
    confirmed: ConfirmedAnswers


class ModelComparison(BaseModel):
    """A class by its active model (old) and by another one (new)."""

    class_name: str
    old: Lineage
    new: Lineage
    sessions: int
    crops: int
    crops_compared: int = Field(description="Crops about which both models have an answer of their own.")
    crops_agreed: int
    attendance_cells: int
    attendance_changes: list[AttendanceChange]
    disagreements: list[Disagreement]

    @property
    def agreement(self) -> float | None:
        """Share of the compared crops about which both say the same."""
        return self.crops_agreed / self.crops_compared if self.crops_compared else None

    @property
    def contradictions(self) -> int:
        """Confirmed crops that the new model takes for somebody else."""
        return self.new.confirmed.other_student

    def rows(self) -> Iterator[list[str]]:
        """One row for each disagreement (what: face) and each cell that would change (what: attendance); see COLUMNS."""
        for face in self.disagreements:
            sides = [
                value
                for side in (face.old, face.new)
                for value in (
                    ["", "", ""]
                    if side is None
                    else [side.state, side.student or "", "" if side.confidence is None else f"{side.confidence:.4f}"]
                )
            ]
            contradicts = "yes" if face.contradicts else ""
            yield ["face", face.session, str(face.face_crop_id), face.confirmed or "", *sides, contradicts]
        for cell in self.attendance_changes:
            yield ["attendance", cell.session, "", cell.student, cell.old, "", "", cell.new, "", "", ""]

    def to_csv(self) -> str:
        """The rows with their head; `student` is whom a person has confirmed, or whose attendance it is."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(self.rows())
        return out.getvalue()


def compare_models(database: Database, models: EmbeddingModels, class_name: str, model_name: str) -> ModelComparison:
    """Compare a model's lineage of a class with that of the class's active model.

    Raises AttendanseeError for a class that is not there, ModelError for an unknown model, ConflictError where the class
    has no active model or it is this one.
    """
    with database.connection() as connection:
        read_one_state(connection)
        class_id = catalog.find_class(connection, class_name)
        active = other_active_model(connection, class_name, model_name)
        names = catalog.student_names(connection, class_id)
        places = lineages.read_places(connection, class_id)
        confirmed = {
            crop_id: said.student_id for crop_id, said in lineages.read_confirmations(connection, class_id).items()
        }
        found = [
            _read(connection, class_id, model, models.version(model), places, confirmed)
            for model in (active, model_name)
        ]
        registers = [read_register(connection, class_name, model) for model in (active, model_name)]
    (old, old_answers, covered), (new, new_answers, _) = found
    compared = compare_answers(old_answers, new_answers, confirmed)
    changes, cells = attendance_changes(*registers)
    return ModelComparison(
        class_name=class_name,
        old=old,
        new=new,
        sessions=covered.sessions,
        crops=covered.crops,
        crops_compared=compared.both,
        crops_agreed=compared.agreed,
        attendance_cells=cells,
        attendance_changes=changes,
        disagreements=[
            Disagreement(
                face_crop_id=crop_id,
                session=places[crop_id].session,
                confirmed=names[confirmed[crop_id]] if crop_id in confirmed else None,
                old=_named(old_answers.get(crop_id), names),
                new=_named(new_answers.get(crop_id), names),
                contradicts=crop_id in compared.contradicted,
            )
            for crop_id in sorted(compared.differing | compared.contradicted, key=lambda c: (places[c].path, c))
        ],
    )


def other_active_model(connection: Connection, class_name: str, model_name: str) -> str:
    """The class's active model; raises ConflictError where there is none or it is the one named."""
    active = catalog.active_model(connection, class_name)
    if active is None:
        raise ConflictError(f"No model has processed the class {class_name} yet: run its photos first.")
    if active == model_name:
        raise ConflictError(f"{model_name} is the active model of {class_name}: name another one.")
    return active


@dataclass(frozen=True)
class ComparedAnswers:
    """Two models' answers about the same crops; differing and contradicted hold crop ids."""

    both: int
    agreed: int
    differing: set[int]
    contradicted: set[int]


def compare_answers(
    old: Mapping[int, Answer], new: Mapping[int, Answer], confirmed: Mapping[int, int]
) -> ComparedAnswers:
    """Count where two models say the same of a crop: the same state and, where there is one, the same student.

    old, new: answers by crop id; crops that only one of them has an answer about are not compared. confirmed: the student
    of each crop that a person has confirmed, whom the new model may contradict whatever the old one says.
    """
    both = old.keys() & new.keys()
    differing = {c for c in both if (old[c].state, old[c].student_id) != (new[c].state, new[c].student_id)}
    return ComparedAnswers(len(both), len(both) - len(differing), differing, contradicted(new, confirmed))


def contradicted(answers: Mapping[int, Answer], confirmed: Mapping[int, int]) -> set[int]:
    """The confirmed crops that a model assigns to somebody else; that it knows nobody, or is in doubt, contradicts nothing."""
    return {
        crop_id
        for crop_id, student_id in confirmed.items()
        if (answer := answers.get(crop_id)) and answer.state == "assigned" and answer.student_id != student_id
    }


def attendance_changes(old: Register, new: Register) -> tuple[list[AttendanceChange], int]:
    """The cells of a class's register that two models fill differently, by session and student; and how many there are.

    A session that only one of them has processed counts with all its cells.
    """
    cells = old.cells.keys() | new.cells.keys()
    sessions = {name: place for place, name in enumerate(old.dates)}
    differing = [cell for cell in cells if old.cells.get(cell) != new.cells.get(cell)]
    return [
        AttendanceChange(
            session=session,
            student=student,
            old=old.cells.get((student, session), ""),
            new=new.cells.get((student, session), ""),
        )
        for student, session in sorted(differing, key=lambda cell: (sessions[cell[1]], cell))
    ], len(cells)


def confirmed_answers(
    connection: Connection, class_id: int, spec: ModelSpec, version: str, places: Mapping[int, Place]
) -> dict[int, Answer]:
    """What the model would say about each confirmed crop had nobody confirmed it: leave-one-out, by its own vectors.

    As in a run with the defaults: confirmed crops are asked first, then those of named, then of provisional students; what
    a session's other faces were given automatically says nothing about its own; rejected students are left out, and one
    whom another face of the photo shows gives a review. Clusters are not asked: most were formed with the confirmed crop.
    A crop without a vector of this version has no answer.
    """
    student_of = identities.read_identities(connection, class_id, spec.name)
    shown: dict[int, dict[int, int]] = {}
    for crop_id, student_id in student_of.items():
        if student_id is not None:
            shown.setdefault(places[crop_id].image_id, {})[crop_id] = student_id
    by_id = {g.crop_id: g for g in identities.read_gallery(connection, class_id, spec.name)}
    ids, vectors = crops.read_embeddings(connection, spec.name, version, by_id, spec.dimension)
    gallery = _Gallery([by_id[crop_id] for crop_id in ids], vectors, places)
    probes = np.flatnonzero(gallery.confirmed)
    rejected: dict[int, list[int]] = {}
    for crop_id, student_id in decisions.read_rejected(connection, gallery.ids[probes].tolist()):
        rejected.setdefault(crop_id, []).append(student_id)
    answers: dict[int, Answer] = {}
    for block in np.split(probes, range(_BLOCK, len(probes), _BLOCK)):
        of_block = gallery.ids[block].tolist()
        taken = [
            {s for other, s in shown[places[crop_id].image_id].items() if other != crop_id} for crop_id in of_block
        ]
        decided = gallery.ask(block, [rejected.get(crop_id, []) for crop_id in of_block], taken, spec)
        for crop_id, decision in zip(of_block, decided, strict=True):
            similarity = None if decision.similarity is None else spec.calibrated(decision.similarity)
            answers[crop_id] = Answer(decision.state, decision.student, similarity)
    return answers


class _Gallery:
    """A class's identified crops with their vectors, (n, dimension); arrays of length n."""

    def __init__(self, gallery: list[GalleryCrop], vectors: NDArray[np.float32], places: Mapping[int, Place]) -> None:
        self.vectors = vectors
        self.ids = np.array([g.crop_id for g in gallery], dtype=np.int64)
        self.students = np.array([g.student_id for g in gallery], dtype=np.int64)
        self.sessions = np.array([places[g.crop_id].session_id for g in gallery], dtype=np.int64)
        self.confirmed = np.array([g.confirmed for g in gallery], dtype=bool)
        provisional = np.array([g.provisional for g in gallery], dtype=bool)
        self.tiers = (self.confirmed, ~provisional, provisional)

    def ask(
        self, rows: NDArray[np.intp], rejected: list[list[int]], taken: list[set[int]], spec: ModelSpec
    ) -> list[Decision]:
        """What the gallery without each of these crops says about it."""
        similarity = cosine_similarity_matrix(self.vectors[rows], self.vectors)
        similarity[np.arange(len(rows)), rows] = -np.inf
        similarity[(self.sessions[rows, None] == self.sessions) & ~self.confirmed] = -np.inf
        for place, student_ids in enumerate(rejected):
            similarity[place, np.isin(self.students, student_ids)] = -np.inf
        decided = [Decision("no_match")] * len(rows)
        for tier in self.tiers:
            open_rows = [place for place, decision in enumerate(decided) if decision.state == "no_match"]
            if not open_rows:
                break
            votes = knn_votes(
                similarity[open_rows][:, tier],
                self.students[tier],
                AssignmentConfig().k,
                1 - spec.assignment_distance,
            )
            # Each is asked alone, whatever photo the others are from.
            for place, decision in zip(
                open_rows, assign_one_to_one(votes, open_rows, spec.review_margin, dict(enumerate(taken))), strict=True
            ):
                decided[place] = decision
        return decided


def _read(
    connection: Connection,
    class_id: int,
    model: str,
    version: str,
    places: Mapping[int, Place],
    confirmed: Mapping[int, int],
) -> tuple[Lineage, dict[int, Answer], Coverage]:
    """What one lineage covers, and its answers about the crops that no person has taken a student off."""
    spec = class_spec(connection, model, class_id, version=version)
    coverage = read_coverage(connection, class_id, model, version)
    without = confirmed_answers(connection, class_id, spec, version, places)
    answers = without | {
        crop_id: Answer(stored.state, stored.student_id, stored.similarity)
        for crop_id, stored in lineages.read_answers(connection, class_id, model).items()
        if stored.decided_by != "person" and crop_id not in confirmed and not places[crop_id].is_enrolment
    }
    lineage = Lineage(
        model=model,
        version=version,
        sessions_covered=coverage.covered,
        crops_embedded=coverage.embedded,
        lacking=coverage.lacking,
        thresholds=Thresholds(
            clustering_distance=spec.clustering_distance,
            assignment_distance=spec.assignment_distance,
            verification_threshold=spec.verification_threshold,
            review_margin=spec.review_margin,
        ),
        confirmed=_count_confirmed(without, confirmed),
    )
    return lineage, answers, coverage


def _count_confirmed(answers: Mapping[int, Answer], confirmed: Mapping[int, int]) -> ConfirmedAnswers:
    def count(states: Iterable[State]) -> int:
        return sum(crop_id in answers and answers[crop_id].state in states for crop_id in confirmed)

    other = len(contradicted(answers, confirmed))
    return ConfirmedAnswers(
        same_student=count(["assigned"]) - other,
        other_student=other,
        needs_review=count(["needs_review"]),
        nobody=count(["no_match"]),
        not_embedded=sum(crop_id not in answers for crop_id in confirmed),
    )


def _named(answer: Answer | None, names: Mapping[int, str]) -> CropAnswer | None:
    if answer is None:
        return None
    student = None if answer.student_id is None else names[answer.student_id]
    return CropAnswer(state=answer.state, student=student, confidence=answer.similarity)
