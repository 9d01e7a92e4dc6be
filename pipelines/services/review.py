"""All that a teacher looks at of a class: photos, faces, students, the register, and why each of its cells says so."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np
from psycopg import Connection
from pydantic import BaseModel, Field

from pipelines.database import catalog, crops, decisions, review
from pipelines.database.review import ReviewedFace, ReviewedPhoto, ReviewedStudent
from pipelines.errors import ParameterError
from pipelines.faces.similarity import cosine_similarity_matrix
from pipelines.partitions import SessionKey
from pipelines.resources.database import read_one_state
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.services.attendance import Register, read_register
from pipelines.services.context import ServiceContext
from pipelines.services.thresholds import class_spec

FaceState = Literal["sure", "unsure", "unknown", "visitor", "not_a_face"]
Status = Literal["present", "absent", "unsure", "excused", "unknown", "visitor"]

# Students who are proposed for an unknown person.
_PROPOSALS = 2


class Decider(BaseModel):
    """Who or what has decided."""

    by: Literal["person", "knn", "cluster"] = Field(
        description="knn: compared with the known faces; cluster: grouped with faces of one person."
    )
    name: str | None = Field(default=None, description="The person, as they are named in the log of decisions.")
    at: datetime | None = None
    run_id: str | None = None
    decision_id: int | None = Field(default=None, description="What to undo.")
    reason: str | None = None


class Face(BaseModel):
    """A face in a photo: `unsure` has a candidate as its student; `unknown` nobody, or one whom nobody has named."""

    crop_id: int
    image_id: int
    session_id: int
    box: tuple[float, float, float, float] = Field(description="x, y, width, height in pixels of the photo.")
    state: FaceState
    student_id: int | None
    similarity: float | None = Field(description="Calibrated, 0.5 is the threshold; none where a person has decided.")
    cosine_similarity: float | None
    runner_up_id: int | None
    runner_up_similarity: float | None
    runner_up_cosine_similarity: float | None
    decider: Decider | None = Field(description="None before any run.")
    rejected_ids: list[int] = Field(description="Students of whom a person has said that this is not their face.")
    unusable_reasons: list[str]
    crop_path: str | None = Field(exclude=True, description="For `PhotoStore.read_crop`.")

    @property
    def margin(self) -> float | None:
        """The lead over the runner-up in cosine similarity."""
        if self.cosine_similarity is None or self.runner_up_cosine_similarity is None:
            return None
        return self.cosine_similarity - self.runner_up_cosine_similarity

    @property
    def risk(self) -> float | None:
        """The probability that this is somebody else than its student; 0 where a person has said who it is.

        A calibrated similarity s is the probability that a face is the student's and not a stranger's, where both were
        as likely before: the odds that the face itself gives are s / (1 - s). The runner-up's odds against the same
        stranger are r / (1 - r). Of student, runner-up and stranger one is right:
        (1 + r / (1 - r)) / (1 + s / (1 - s) + r / (1 - r)).
        """
        if self.decider is None or self.state != "sure":
            return None
        if self.decider.by == "person":
            return 0.0
        if self.similarity is None:
            return None
        student, rival = _odds(self.similarity), _odds(self.runner_up_similarity or 0.0)
        return (1 + rival) / (1 + student + rival)


class Photo(BaseModel):
    """A photo of a session, with its faces from left to right; one that cannot be used has the reason."""

    image_id: int
    session_id: int
    path: str = Field(description="Where it lies below the photo root.")
    width: int | None
    height: int | None
    refused_reason: str | None
    searched: bool = Field(description="Whether it was searched for faces.")
    faces: list[Face]

    @property
    def file_name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


class SessionReview(BaseModel):
    """A session that is in the register, or has photos that nobody has processed yet.

    expected_false_present: how many of the students whom the photos alone have made present were somebody else, as far as
    the similarities tell: the sum of the cells' `risk`. A cell that a person has set, or one face of which a person has
    confirmed, adds nothing. unrated: such cells without a similarity, which are left out of it.

    Good for saying which session to check first, and which cells of it. It is no measured error rate: with a calibration
    adopted (`attendansee calibrate`) the similarities are probabilities that were fitted to the class's own confirmed
    faces; on a model's own scale equal vectors have 0.99, so that each cell adds at least 0.01, and a good class's figure
    is far too high. It knows nothing of twins, of faces that nobody has detected, nor of false "absent".
    """

    session_id: int
    name: str
    held_on: date | None
    counts: dict[str, int]
    present_rate: float | None = Field(
        description="Present of all students who were not excused; unsure is not present."
    )
    expected_false_present: float
    unrated: int
    photos: list[Photo]


class StudentReview(BaseModel):
    """A student, an unknown person (provisional) or a visitor, with their crops, the portraits first."""

    student_id: int
    name: str
    kind: Literal["student", "unknown", "visitor"]
    provisional: bool = Field(description="No person has named the student yet.")
    student_number: str | None
    in_register: bool = Field(description="Has a row in the register.")
    portrait_ids: list[int] = Field(description="Crops of portraits that show the student.")
    crop_ids: list[int] = Field(description="Crops in sessions that show the student.")
    present: int
    counted: int = Field(description="Sessions in which the student is present, absent or unsure.")

    @property
    def present_rate(self) -> float | None:
        """Present of counted sessions; None where there are none."""
        return self.present / self.counted if self.counted else None


class Mark(BaseModel):
    """What a person has set by hand."""

    note: str | None
    decided_by: str
    decided_at: datetime
    decision_id: int


class Cell(BaseModel):
    """A student in a session: the status, and what it rests on.

    by_photos: what the photos alone say. crop_ids: faces that show the student; doubtful_ids: faces that may (they are in
    doubt, and the student is the candidate or the runner-up). nearest_id: where the photos say "absent", the face that was
    compared with the student and came nearest, as far as stored. risk: the probability that an automatic "present" is
    somebody else, by its surest face, for faces of one person in one session are no independent witnesses; None for all
    other cells, and where no similarity is known. why: plain sentences.
    """

    student_id: int
    session_id: int
    status: Status
    by_photos: Literal["present", "absent", "unsure"]
    mark: Mark | None
    crop_ids: list[int]
    doubtful_ids: list[int]
    nearest_id: int | None = None
    risk: float | None
    why: list[str]


class Candidate(BaseModel):
    """Somebody whom faces may show."""

    student_id: int
    similarity: float | None
    crop_ids: list[int] = Field(description="A few faces to compare with, portraits first.")


class Question(BaseModel):
    """One answer of a person that settles cells of the register.

    which: do these faces of one session, which are of one person, show the first candidate, the second, somebody else,
    or no face? who: who is this unknown person: a new name, a student (the candidates are proposals), or a visitor?
    cells: (student, session) that nothing but the answer settles, see `settled_by_which`.
    """

    key: str = Field(description="Stays the same as long as the question is about the same crops.")
    kind: Literal["which", "who"]
    text: str
    session_id: int | None = Field(description="None of `who`: it is about all sessions.")
    student_id: int = Field(description="The candidate, or the unknown person.")
    crop_ids: list[int]
    candidates: list[Candidate]
    cells: list[tuple[int, int]]

    @property
    def settles(self) -> int:
        """How many cells of the register one answer settles."""
        return len(self.cells)


class Review(BaseModel):
    """What there is to look at of a class in one model's lineage; of one session only where that was asked for.

    students: named ones first, then unknown people, then visitors. questions: the one whose answer settles most cells
    first; `left`: those that settle any. elsewhere: faces of other sessions that the questions are about or compare with.
    """

    class_id: int
    class_name: str
    model: str
    threshold: float = Field(description="Calibrated similarity from which a face may be a student's.")
    cosine_threshold: float = Field(description="The same as a cosine similarity.")
    review_margin: float = Field(description="Lead in cosine similarity that a face needs not to be in doubt.")
    sessions: list[SessionReview]
    portraits: list[Photo]
    students: list[StudentReview]
    cells: list[Cell]
    questions: list[Question]
    elsewhere: list[Face]

    @property
    def left(self) -> int:
        """Questions that settle at least one cell of the register."""
        return sum(question.settles > 0 for question in self.questions)

    def faces(self) -> dict[int, Face]:
        """Every face by its crop's id, those of portraits and those elsewhere included."""
        photos = (*self.portraits, *(photo for session in self.sessions for photo in session.photos))
        return {face.crop_id: face for faces in (self.elsewhere, *(p.faces for p in photos)) for face in faces}

    def names(self) -> dict[int, str]:
        """The students' names by id."""
        return {student.student_id: student.name for student in self.students}

    @cached_property
    def names_in_sentences(self) -> dict[int, str]:
        """The students' names by id, see `isolated`."""
        return {student_id: isolated(name) for student_id, name in self.names().items()}

    @cached_property
    def places(self) -> dict[int, tuple[Photo, int]]:
        """The photo of each crop that is not elsewhere, and which of its faces it is, counted from 1 at the left."""
        photos = (*self.portraits, *(photo for session in self.sessions for photo in session.photos))
        return {face.crop_id: (photo, number) for photo in photos for number, face in enumerate(photo.faces, start=1)}


def read_review(
    context: ServiceContext,
    class_name: str,
    model: str | None = None,
    session_name: str | None = None,
    *,
    alone: bool = False,
) -> Review:
    """What there is to look at of a class, by its active model unless another one is named; of one session or of all.

    alone: nothing of the class's other sessions is read, so that nobody is proposed for unknown people and what is
    counted over sessions is of this one; a run looks at each session so, and would read all for each of them.

    Raises AttendanseeError where there is no such class or session.
    """
    with context.database.connection() as connection:
        read_one_state(connection)
        class_id = catalog.find_class(connection, class_name)
        if (
            session_name is not None
            and catalog.find_session(connection, SessionKey(class_name, session_name)).is_enrolment
        ):
            raise ParameterError(
                f"The session {session_name!r} holds portraits and has no attendance: choose another one."
            )
        model = model or catalog.active_model(connection, class_name) or context.settings.model
        return _Reader(connection, context, class_id, class_name, model, session_name, alone).review()


class _Likeness(NamedTuple):
    """How like an unknown person a named student is, and what speaks against that they are one."""

    student_id: int
    cosine_similarity: float
    obstacle: Literal["rejected", "beside"] | None


class _Reader:
    """What was read of a class, and how it hangs together."""

    def __init__(
        self,
        connection: Connection,
        context: ServiceContext,
        class_id: int,
        class_name: str,
        model: str,
        only_session: str | None,
        alone: bool,
    ) -> None:
        self.connection = connection
        self.context = context
        self.alone = alone
        self.class_id = class_id
        self.spec: ModelSpec = class_spec(connection, model, class_id)
        self.threshold = self.spec.calibrated(1 - self.spec.assignment_distance)
        self.register: Register = read_register(connection, class_name, model)
        self.people: dict[int, ReviewedStudent] = {s.id: s for s in review.read_students(connection, class_id)}
        self.id_of = {student.name: student.id for student in self.people.values()}

        of_session = only_session if alone else None
        every_photo = review.read_photos(connection, class_id, of_session)
        self.sessions: dict[int, tuple[str, date | None]] = review.read_sessions(connection, class_id)
        session_of = {photo.image_id: photo.session_id for photo in every_photo}
        rows = review.read_faces(connection, class_id, model, of_session)
        rejected = review.read_rejections(connection, [row.crop_id for row in rows])
        self.faces: dict[int, Face] = {
            row.crop_id: self._face(row, session_of[row.image_id], rejected.get(row.crop_id, [])) for row in rows
        }
        of_photo: dict[int, list[Face]] = defaultdict(list)
        for face in self.faces.values():
            of_photo[face.image_id].append(face)
        photos = [(photo, _photo(photo, of_photo[photo.image_id])) for photo in every_photo]
        self.portraits = [shown for photo, shown in photos if photo.is_enrolment]
        self.photos: dict[int, list[Photo]] = defaultdict(list)
        for photo, shown in photos:
            if not photo.is_enrolment:
                self.photos[photo.session_id].append(shown)
        self.portrait_faces = {face.crop_id for photo in self.portraits for face in photo.faces}
        self.asked = {session_id for session_id, (name, _) in self.sessions.items() if only_session in (None, name)}
        self.showing: dict[tuple[int, int], list[Face]] = defaultdict(list)
        self.doubted: dict[tuple[int, int], list[Face]] = defaultdict(list)
        self.nearest: dict[tuple[int, int], Face] = {}  # of the faces that have the student as runner-up
        for face in sorted(self.faces.values(), key=lambda face: (face.runner_up_similarity or 0, -face.crop_id)):
            if face.runner_up_id is not None and face.runner_up_similarity is not None:
                self.nearest[face.runner_up_id, face.session_id] = face
        for face in self.faces.values():
            if face.student_id is not None and face.state not in ("unsure", "not_a_face"):
                self.showing[face.student_id, face.session_id].append(face)
            elif face.state == "unsure":
                for student_id in {face.student_id, face.runner_up_id} - {None}:
                    self.doubted[student_id, face.session_id].append(face)  # type: ignore[index]

        self.shown = {student_id for student_id, _ in self.showing}
        self.said_visitors = self._said_visitors()
        self.likenesses: dict[int, list[_Likeness]] = {}  # of unknown people, once they are asked about
        self.why_unknown: dict[int, list[str]] = {}  # the same in each session

    def _said_visitors(self) -> dict[int, Decider]:
        """Who has said that a student is a visitor, by the visitor's id."""
        said = {s.id: decisions.hidden_by(self.connection, s.id) for s in self.people.values() if s.hidden}
        ids = {student_id: decision_id for student_id, decision_id in said.items() if decision_id is not None}
        log = decisions.read_logged(self.connection, self.class_id, list(ids.values())) if ids else {}
        return {
            student_id: Decider(
                by="person",
                name=log[decision_id]["decided_by"],
                at=log[decision_id]["decided_at"],
                decision_id=decision_id,
                reason=log[decision_id]["reason"],
            )
            for student_id, decision_id in ids.items()
        }

    def review(self) -> Review:
        """All of it."""
        read = self.asked if self.alone else self.sessions
        cells = [cell for session_id in read for cell in self._cells(session_id)]
        students = self._students(cells)
        questions = self._questions(cells, students)
        asked_cells = [cell for cell in cells if cell.session_id in self.asked]
        for cell in asked_cells:
            cell.why = self._why(cell)
        compared = {
            crop_id
            for question in questions
            for crop_ids in (question.crop_ids, *(candidate.crop_ids for candidate in question.candidates))
            for crop_id in crop_ids
        }
        return Review(
            class_id=self.class_id,
            class_name=self.register.class_name,
            model=self.register.model,
            threshold=self.threshold,
            cosine_threshold=1 - self.spec.assignment_distance,
            review_margin=self.spec.review_margin,
            sessions=[
                self._session(session_id, [cell for cell in asked_cells if cell.session_id == session_id])
                for session_id in self.sessions
                if session_id in self.asked
            ],
            portraits=self.portraits,
            students=[
                student.model_copy(update={"crop_ids": [c for c in student.crop_ids if self._is_asked(c)]})
                for student in students
            ],
            cells=asked_cells,
            questions=questions,
            elsewhere=[
                self.faces[crop_id] for crop_id in sorted(compared - self.portrait_faces) if not self._is_asked(crop_id)
            ],
        )

    def _is_asked(self, crop_id: int) -> bool:
        return self.faces[crop_id].session_id in self.asked

    def _face(self, row: ReviewedFace, session_id: int, rejected: list[int]) -> Face:
        student = self.people.get(row.student_id) if row.student_id is not None else None
        by_person = row.confirmed or row.taken_off
        decider = None
        if by_person:
            decider = Decider(
                by="person",
                name=row.decision_by,
                at=row.decision_at,
                decision_id=row.decision_id,
                reason=row.decision_reason,
            )
        elif row.decided_by is not None:
            decider = Decider(by=row.decided_by, at=row.decided_at, run_id=row.run_id)  # type: ignore[arg-type]
        # 1.0 is stored beside a person's word, which no comparison has given.
        compared = decider is not None and decider.by != "person"
        runner_up = row.runner_up_cosine_similarity if compared else None
        return Face(
            crop_id=row.crop_id,
            image_id=row.image_id,
            session_id=session_id,
            box=(row.x, row.y, row.width, row.height),
            state=_state(row, student),
            student_id=None if row.taken_off or student is None else student.id,
            similarity=row.similarity if compared else None,
            cosine_similarity=row.cosine_similarity if compared else None,
            runner_up_id=row.runner_up_id if compared else None,
            runner_up_similarity=None if runner_up is None else self.spec.calibrated(runner_up),
            runner_up_cosine_similarity=runner_up,
            decider=decider,
            rejected_ids=rejected,
            unusable_reasons=row.unusable_reasons,
            crop_path=row.crop_path,
        )

    def _session(self, session_id: int, cells: Sequence[Cell]) -> SessionReview:
        name, held_on = self.sessions[session_id]
        automatic = [c for c in cells if c.status == "present" and c.mark is None and not self._provisional(c)]
        counted = [cell for cell in cells if cell.status in ("present", "absent", "unsure")]
        present = sum(cell.status == "present" for cell in counted)
        return SessionReview(
            session_id=session_id,
            name=name,
            held_on=held_on,
            counts=self.register.counts(name),
            present_rate=present / len(counted) if counted else None,
            expected_false_present=sum(cell.risk or 0.0 for cell in automatic),
            unrated=sum(cell.risk is None for cell in automatic),
            photos=self.photos.get(session_id, []),
        )

    def _provisional(self, cell: Cell) -> bool:
        """Of somebody without a name nobody can say that it was somebody else."""
        return self.people[cell.student_id].provisional

    def _cells(self, session_id: int) -> Iterable[Cell]:
        session = self.sessions[session_id][0]
        register = self.register
        for name in (*register.students, *register.unknown, *register.visitors):
            status = register.cells.get((name, session))
            if status is not None:
                yield self._cell(self.id_of[name], session_id, status)

    def _cell(self, student_id: int, session_id: int, status: str) -> Cell:
        place = student_id, session_id
        showing, doubted = self.showing.get(place, []), self.doubted.get(place, [])
        candidate = any(face.student_id == student_id for face in doubted)
        said = self.register.marks.get((self.people[student_id].name, self.sessions[session_id][0]))
        risks = [face.risk for face in showing if face.risk is not None]
        by_photos: Literal["present", "absent", "unsure"] = (
            "present" if showing else "unsure" if candidate else "absent"
        )
        nearest = self.nearest.get(place) if by_photos == "absent" else None
        mark = None
        if said is not None:
            mark = Mark(
                note=said.note, decided_by=said.decided_by, decided_at=said.decided_at, decision_id=said.decision_id
            )
        return Cell(
            student_id=student_id,
            session_id=session_id,
            status=status,  # type: ignore[arg-type]
            by_photos=by_photos,
            mark=mark,
            crop_ids=[face.crop_id for face in showing],
            doubtful_ids=[face.crop_id for face in doubted],
            nearest_id=nearest.crop_id if nearest else None,
            risk=min(risks, default=None) if status == "present" and said is None else None,
            why=[],
        )

    def _why(self, cell: Cell) -> list[str]:
        """The cell in plain sentences; those about single faces are `explain_face`."""
        person = self.people[cell.student_id]
        showing = [self.faces[crop_id] for crop_id in cell.crop_ids]
        doubted = [self.faces[crop_id] for crop_id in cell.doubtful_ids]
        name = isolated(person.name)
        photos = [photo for photo in self.photos.get(cell.session_id, []) if photo.refused_reason is None]
        shown_in = len({face.image_id for face in showing})
        sentences = []
        if cell.mark is not None:
            note = f" ({cell.mark.note})" if cell.mark.note else ""
            sentences.append(
                f"{isolated(cell.mark.decided_by)} set “{cell.status}” by hand on {cell.mark.decided_at:%Y-%m-%d}{note}; "
                f"no run changes that. The photos alone say “{cell.by_photos}”."
            )
        if person.hidden:
            sentences.append(_said(self.said_visitors.get(person.id), f"{name} is a visitor"))
            sentences.append("A visitor is in no register.")
        if showing:
            nameless = person.provisional and not person.hidden
            who = "one unknown person, whom nobody has named yet" if nameless else name
            sentences.append(
                f"{_many(len(showing), 'face')} in {shown_in} of {_many(len(photos), 'photo')} "
                f"{'shows' if len(showing) == 1 else 'show'} {who}."
            )
        elif not photos:
            sentences.append("This session has no photo that can be used.")
        elif cell.by_photos == "absent":
            faces = sum(len(photo.faces) for photo in photos)
            sentences.append(
                f"None of the {_many(faces, 'face')} in {_many(len(photos), 'photo')} was taken for {name}."
            )
            sentences += self._why_absent(cell, name, [face for photo in photos for face in photo.faces])
        candidates = [face for face in doubted if face.student_id == cell.student_id]
        if candidates:
            sentences.append(f"{_many(len(candidates), 'face')} may be {name}, in doubt.")
        if second := len(doubted) - len(candidates):
            verb = "has" if second == 1 else "have"
            sentences.append(f"{_many(second, 'face')} in doubt {verb} {name} as the second likest.")
        refused = len(self.photos.get(cell.session_id, [])) - len(photos)
        if refused and cell.by_photos != "present":
            sentences.append(f"{_many(refused, 'photo')} of this session cannot be used.")
        if person.provisional and not person.hidden:
            if person.id not in self.why_unknown:
                self.why_unknown[person.id] = [*self._why_unknown(person.id)]
            sentences += self.why_unknown[person.id]
        if cell.risk:
            sentences.append(f"By the similarities alone it is somebody else with a probability of {cell.risk:.1%}.")
        return sentences

    def _why_absent(self, cell: Cell, name: str, faces: Sequence[Face]) -> Iterator[str]:
        if cell.student_id not in self.shown:
            yield f"No face of {name} is known yet, so that no photo can show them: add a portrait or name a face."
        elif cell.nearest_id is None:
            compared = sum(face.decider is not None and face.decider.by == "knn" for face in faces)
            yield (
                f"Of the {_many(compared, 'face')} that a run has compared with the known faces, none has {name} as its "
                "likest or second likest."
            )
        else:
            face = self.faces[cell.nearest_id]
            who = isolated(self.people[face.student_id].name) if face.student_id is not None else None
            became = "It shows nobody known." if who is None else f"It was taken for {who}."
            if face.state == "unsure":
                became = f"It is in doubt whether it shows {who}."
            yield (
                f"Nearest to {name} came {self._place(face)}: similarity "
                f"{_beside_limit(face.runner_up_similarity or 0, self.threshold)}. {became}"
            )
        for unknown_id, likenesses in self.likenesses.items():
            if (unknown_id, cell.session_id) not in self.showing:
                continue
            likest = next((likeness for likeness in likenesses if likeness.obstacle is None), None)
            if likest and likest.student_id == cell.student_id:
                similarity = self.spec.calibrated(likest.cosine_similarity)
                yield (
                    f"The unknown person {isolated(self.people[unknown_id].name)} is most like {name}: similarity "
                    f"{_beside_limit(similarity, self.threshold)}."
                )
        for face in faces:
            if cell.student_id in face.rejected_ids:
                yield f"A person has said of {self._place(face)} that it is not {name}."
        set_aside = [f for f in faces if f.student_id is None and f.decider is not None and f.decider.by == "person"]
        for face in set_aside:
            yield f"Of {self._place(face)}: {_by_person(face, name)}"
        if unknown := sum(face.state == "unknown" for face in faces if face not in set_aside):
            yield f"{_many(unknown, 'other face' if set_aside else 'face')} of this session {'shows' if unknown == 1 else 'show'} nobody known."

    def _place(self, face: Face) -> str:
        """Where a face of a session is, in words."""
        (photo,) = [photo for photo in self.photos[face.session_id] if photo.image_id == face.image_id]
        number = [other.crop_id for other in photo.faces].index(face.crop_id) + 1
        return f"face {number} from the left in {photo.file_name}"

    def _why_unknown(self, student_id: int) -> Iterator[str]:
        """Why an unknown person is none of the named students: who comes nearest now, and what speaks against it."""
        for likeness in self.likenesses.get(student_id, []):
            name = isolated(self.people[likeness.student_id].name)
            similarity = self.spec.calibrated(likeness.cosine_similarity)
            if likeness.obstacle is None:
                yield f"Of the named students {name} is likest now: similarity {_beside_limit(similarity, self.threshold)}."
                if similarity >= self.threshold:
                    yield (
                        "That is by the nearest single face; the run has compared with what a student's faces have in "
                        "common, as far as it knew them then. The question about this person settles it."
                    )
                return
            if similarity >= self.threshold:
                against = {
                    "rejected": f"a person has said that it is not {name}",
                    "beside": f"a photo shows {name} beside this person",
                }[likeness.obstacle]
                yield f"{name} is as like (similarity {_beside_limit(similarity, self.threshold)}), but {against}."

    def _students(self, cells: Sequence[Cell]) -> list[StudentReview]:
        """Who is in the register, and whom a face of this lineage shows or may show."""
        rows = {name: kind for kind in ("unknown", "visitor") for name in self._names(kind)}
        seen = self.shown | {student_id for student_id, _ in self.doubted}
        listed = [
            person
            for person in self.people.values()
            if person.id in seen or person.name in (*self.register.students, *rows)
        ]
        statuses: dict[int, list[str]] = defaultdict(list)
        for cell in cells:
            statuses[cell.student_id].append(cell.status)
        faces_of: dict[int, list[Face]] = defaultdict(list)
        for (student_id, _), faces in self.showing.items():
            faces_of[student_id] += faces
        found = []
        for person in listed:
            of_person = faces_of[person.id]
            portraits = [face.crop_id for face in of_person if face.crop_id in self.portrait_faces]
            counted = [status for status in statuses[person.id] if status in ("present", "absent", "unsure")]
            found.append(
                StudentReview(
                    student_id=person.id,
                    name=person.name,
                    kind="visitor" if person.hidden else "unknown" if person.provisional else "student",
                    provisional=person.provisional,
                    student_number=person.student_number,
                    in_register=person.name in (*self.register.students, *self.register.unknown),
                    portrait_ids=portraits,
                    crop_ids=[face.crop_id for face in of_person if face.crop_id not in portraits],
                    present=counted.count("present"),
                    counted=len(counted),
                )
            )
        order = ("student", "unknown", "visitor")
        return sorted(found, key=lambda student: (order.index(student.kind), student.name))

    def _names(self, kind: str) -> list[str]:
        return self.register.unknown if kind == "unknown" else self.register.visitors

    def _questions(self, cells: Sequence[Cell], students: Sequence[StudentReview]) -> list[Question]:
        by_place = {(cell.student_id, cell.session_id): cell for cell in cells}
        known = {student.student_id: student for student in students}
        questions = [*self._which(by_place, known), *self._who(by_place, known)]
        return sorted(questions, key=lambda q: (-q.settles, q.kind == "who", q.session_id or 0, q.key))

    def _which(self, cells: Mapping[tuple[int, int], Cell], known: Mapping[int, StudentReview]) -> list[Question]:
        groups: dict[tuple[int, int, int], list[Face]] = defaultdict(list)
        for session_id in self.asked:
            for photo in self.photos.get(session_id, []):
                turns: dict[int, int] = defaultdict(int)
                for face in sorted(photo.faces, key=lambda face: (-(face.similarity or 0), face.crop_id)):
                    if face.state == "unsure" and face.student_id is not None:
                        # Two faces of one photo are two people, whoever both may be.
                        groups[session_id, face.student_id, turns[face.student_id]].append(face)
                        turns[face.student_id] += 1
        return [
            self._which_of(session_id, student_id, faces, cells, known)
            for (session_id, student_id, _), faces in groups.items()
        ]

    def _which_of(
        self,
        session_id: int,
        student_id: int,
        faces: Sequence[Face],
        cells: Mapping[tuple[int, int], Cell],
        known: Mapping[int, StudentReview],
    ) -> Question:
        best = max(faces, key=lambda face: (face.similarity or 0, -face.crop_id))
        rival = max(faces, key=lambda face: (face.runner_up_similarity or 0, -face.crop_id))
        pairs = [(student_id, best.similarity)]
        if rival.runner_up_id is not None and rival.runner_up_id in known and rival.runner_up_id != student_id:
            pairs.append((rival.runner_up_id, rival.runner_up_similarity))
        names = [isolated(self.people[student].name) for student, _ in pairs]
        these = "Is this face" if len(faces) == 1 else f"Are these {len(faces)} faces"
        return Question(
            key=f"which-{min(face.crop_id for face in faces)}",
            kind="which",
            text=f"{these} from {self.sessions[session_id][0]} {' or '.join(names)}?",
            session_id=session_id,
            student_id=student_id,
            crop_ids=[face.crop_id for face in faces],
            candidates=[
                Candidate(
                    student_id=student,
                    similarity=similarity,
                    crop_ids=[*known[student].portrait_ids, *known[student].crop_ids][:3],
                )
                for student, similarity in pairs
            ],
            cells=[
                (student, session_id)
                for student, similarity in pairs
                if settled_by_which(cells.get((student, session_id)), similarity, self.threshold)
            ],
        )

    def _who(self, cells: Mapping[tuple[int, int], Cell], known: Mapping[int, StudentReview]) -> list[Question]:
        unknown = [
            student
            for student in known.values()
            if student.kind == "unknown" and any(map(self._is_asked, student.crop_ids))
        ]
        if not self.alone:
            self.likenesses = self._likenesses([student.student_id for student in unknown], known)
        return [
            Question(
                key=f"who-{student.student_id}",
                kind="who",
                text=f"Who is this person, seen in {_many(len(sessions), 'session')}: a student, somebody new, or a visitor?",
                session_id=None,
                student_id=student.student_id,
                crop_ids=student.crop_ids,
                candidates=self._proposals(student.student_id, known),
                cells=[
                    (student.student_id, session_id)
                    for session_id in sessions
                    if (cell := cells.get((student.student_id, session_id))) is not None and cell.mark is None
                ],
            )
            for student in unknown
            for sessions in [sorted({self.faces[crop_id].session_id for crop_id in student.crop_ids})]
        ]

    def _proposals(self, unknown: int, known: Mapping[int, StudentReview]) -> list[Candidate]:
        """The named students who are most like an unknown person; nobody whom anything speaks against, however alike."""
        possible = [likeness for likeness in self.likenesses.get(unknown, []) if likeness.obstacle is None]
        return [
            Candidate(
                student_id=likeness.student_id,
                similarity=self.spec.calibrated(likeness.cosine_similarity),
                crop_ids=[*known[likeness.student_id].portrait_ids, *known[likeness.student_id].crop_ids][:3],
            )
            for likeness in possible[:_PROPOSALS]
        ]

    def _likenesses(self, unknown: Sequence[int], known: Mapping[int, StudentReview]) -> dict[int, list[_Likeness]]:
        """The named students for each unknown person, the likest first: the mean of their vectors with the nearest crop.

        What speaks against one: a person has said that a crop does not show them, or a photo shows them beside the unknown
        person.
        """
        named = {
            crop_id: student
            for student in known.values()
            if student.kind == "student"
            for crop_id in (*student.portrait_ids, *student.crop_ids)
        }
        if not unknown or not named:
            return {}
        version = self.context.models.version(self.spec.name)
        wanted = {*named, *(crop_id for student_id in unknown for crop_id in known[student_id].crop_ids)}
        ids, vectors = crops.read_embeddings(self.connection, self.spec.name, version, wanted, self.spec.dimension)
        place = {crop_id: row for row, crop_id in enumerate(ids)}
        gallery = [crop_id for crop_id in ids if crop_id in named]
        compared = vectors[[place[crop_id] for crop_id in gallery]]
        students, of_student = np.unique(
            np.array([named[crop_id].student_id for crop_id in gallery], np.int64), return_inverse=True
        )
        shown_in: dict[int, set[int]] = defaultdict(set)
        for face in self.faces.values():
            if face.student_id is not None and face.state == "sure":
                shown_in[face.image_id].add(face.student_id)
        found: dict[int, list[_Likeness]] = {}
        for student_id in unknown:
            of_person = [crop_id for crop_id in known[student_id].crop_ids if crop_id in place]
            if not of_person or not gallery:
                continue
            mean = vectors[[place[crop_id] for crop_id in of_person]].mean(axis=0, keepdims=True)
            similarity = cosine_similarity_matrix(mean, compared)[0]
            rejected = {student for crop_id in of_person for student in self.faces[crop_id].rejected_ids}
            beside = {student for crop_id in of_person for student in shown_in[self.faces[crop_id].image_id]}
            nearest = np.full(len(students), -np.inf, similarity.dtype)
            np.maximum.at(nearest, of_student, similarity)
            found[student_id] = [
                _Likeness(
                    student, cosine, "rejected" if student in rejected else "beside" if student in beside else None
                )
                for row in np.argsort(-nearest, kind="stable").tolist()
                for student, cosine in [(int(students[row]), float(nearest[row]))]
            ]
        return found


def settled_by_which(cell: Cell | None, similarity: float | None, threshold: float) -> bool:
    """Whether a candidate's cell hangs on the answer: neither a face that is sure nor a person has settled it.

    A student whom the face is not similar enough to is absent whatever the answer, but for a surprise.
    """
    if cell is None or cell.mark is not None or cell.crop_ids:
        return False
    return cell.status == "unsure" or (similarity or 0) >= threshold


def explain_face(found: Review, face: Face) -> str:
    """Why a face shows whom it shows, in a few plain sentences."""
    if face.decider is None:
        return "This model has not looked at the face yet."
    who = found.names_in_sentences.get(face.student_id or 0, "somebody else")
    if face.decider.by == "person":
        return _by_person(face, who)
    if face.student_id is None:
        sentences = _why_nobody(found, face)
    elif face.decider.by == "cluster":
        if face.similarity is not None:
            sentences = [f"Grouped with other faces of {who}, mean similarity {face.similarity:.2f}."]
        elif face.state == "unknown":
            sentences = ["Like no other face: alone in its group."]
        else:
            before = f"it was {who} before, or a person has named its group so, or merged it"
            sentences = [f"Alone in its group, so that no similarity is known: {before}."]
    else:
        sentences = [_comparison(found, face, who)]
    if face.state == "unsure":
        sentences.append(f"In doubt: {_why_in_doubt(found, face, who)}.")
    rejected = [found.names_in_sentences[s] for s in face.rejected_ids if s in found.names_in_sentences]
    if rejected:
        sentences.append(f"A person has said that it is not {' nor '.join(rejected)}.")
    if face.decider.at:
        # A rejection leaves the run's name, but none of what it found; a doubt that a person's word makes leaves both.
        found_something = face.cosine_similarity is not None or face.runner_up_id is not None or not face.rejected_ids
        of_run = face.decider.run_id if found_something else None
        run = f"Decided by run {of_run[:8]}, unchanged" if of_run else "Unchanged"
        sentences.append(f"{run} since {face.decider.at:%Y-%m-%d}.")
    return " ".join(sentences)


def _comparison(found: Review, face: Face, who: str) -> str:
    names = found.names_in_sentences
    text = "Compared with the known faces"
    if face.similarity is not None:
        text += f": similarity to {who} {_beside_limit(face.similarity, found.threshold)}"
    if face.runner_up_id not in names or face.runner_up_similarity is None:
        return f"{text}; there is no second likest."
    order = "more alike is" if face.margin is not None and face.margin < 0 else "second likest is"
    text += f"; {order} {names[face.runner_up_id]}, {face.runner_up_similarity:.2f}"
    if face.margin is not None and face.margin >= 0:
        text += f"; the lead is {_beside_limit(face.margin, found.review_margin, 3)}"
    return f"{text}."


def _why_nobody(found: Review, face: Face) -> list[str]:
    """Why a face that nobody has spoken about shows nobody: above all, why not the likest student, where alike enough."""
    poor = [f"It is poor to see ({', '.join(face.unusable_reasons)})."] if face.unusable_reasons else []
    name = found.names_in_sentences.get(face.runner_up_id or 0)
    if name is None or face.runner_up_similarity is None:
        whom = "anybody else" if face.rejected_ids else "a known face"
        return [f"No comparison with {whom} is stored.", *poor]
    similarity = _beside_limit(face.runner_up_similarity, found.threshold)
    if face.runner_up_similarity < found.threshold:
        return [f"No known face is near enough; the likest is {name}: similarity {similarity}.", *poor]
    but = "the run that decided asked for more; the next one decides by what is needed now"
    if other := _other_face_of(found, face, face.runner_up_id):
        but = f"{other} shows {name} already, and nobody is twice in a photo"
    return [f"The likest is {name}: similarity {similarity}. That is enough, but {but}.", *poor]


def _why_in_doubt(found: Review, face: Face, who: str) -> str:
    if other := _other_face_of(found, face, face.student_id):
        return f"{other} shows {who} already, and nobody is twice in a photo"
    rival = found.names_in_sentences.get(face.runner_up_id or 0)
    if rival is not None and face.margin is not None and face.margin < 0:
        if other := _other_face_of(found, face, face.runner_up_id):
            return f"{other} shows {rival} already, and {who} is the likest of the others"
        return f"it may be {rival}, who is more alike"
    if face.margin is not None and face.margin < found.review_margin:
        return "the lead is too small"
    if face.decider is not None and face.decider.by == "cluster":
        return "the group may hold more than one person"
    return (
        f"when it was decided another face, of this photo or of one that the run took for the same person, was {who}, or a "
        "larger lead was needed"
    )


def _other_face_of(found: Review, face: Face, student_id: int | None) -> str | None:
    """Which other face of the photo shows a student, in words; None where none does."""
    if face.crop_id not in found.places or student_id is None:
        return None
    photo, _ = found.places[face.crop_id]
    for number, other in enumerate(photo.faces, start=1):
        if other.crop_id != face.crop_id and other.student_id == student_id and other.state != "unsure":
            return f"face {number} from the left in the photo"
    return None


def _by_person(face: Face, who: str) -> str:
    decider = face.decider
    assert decider is not None, "asked for faces with one only"
    if decider.name == "enrolment":
        return f"The portrait of {who}, by the name of its file."
    what = {
        "not_a_face": "this is no face",
        "unknown": f"this is {who}" if face.student_id else "this is nobody of the class",
        "visitor": f"this is {who}, a visitor",
    }.get(face.state, f"this is {who}")
    return _said(decider, what)


@lru_cache(maxsize=10_000)  # a review of a hundred sessions asks 100,000 times about its hundred names
def isolated(name: str) -> str:
    """The name for use in a sentence: one that is written from right to left between Unicode's isolates (UAX #9)."""
    if any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in name):
        return f"\u2068{name}\u2069"
    return name


def _state(row: ReviewedFace, student: ReviewedStudent | None) -> FaceState:
    if row.not_a_face:
        return "not_a_face"
    if row.taken_off or student is None:
        return "unknown"
    if row.state == "needs_review":
        return "unsure"
    if student.hidden:
        return "visitor"
    return "unknown" if student.provisional else "sure"


def _photo(photo: ReviewedPhoto, faces: list[Face]) -> Photo:
    return Photo(
        image_id=photo.image_id,
        session_id=photo.session_id,
        path=photo.path,
        width=photo.width,
        height=photo.height,
        refused_reason=photo.refused_reason,
        searched=photo.searched,
        faces=faces,
    )


def _odds(probability: float) -> float:
    limited = min(max(probability, 1e-6), 1 - 1e-6)
    return limited / (1 - limited)


def _said(decider: Decider | None, what: str) -> str:
    """A person's word in a sentence: who has said it, when, and why; of None that somebody has."""
    by = isolated(decider.name) if decider and decider.name else "A person"
    when = f" on {decider.at:%Y-%m-%d}" if decider and decider.at else ""
    why = f": {decider.reason}" if decider and decider.reason else ""
    return f"{by} said{when} that {what}{why}."


def _beside_limit(value: float, limit: float, digits: int = 2) -> str:
    """A figure and what is needed, with as many digits, up to six, as tell the two apart."""
    while digits < 6 and value != limit and f"{value:.{digits}f}" == f"{limit:.{digits}f}":
        digits += 1
    return f"{value:.{digits}f} ({limit:.{digits}f} is needed)"


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
