"""All that a teacher looks at of a class: photos, faces, students, the register, and why each of its cells says so."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import cache, cached_property
from typing import Literal, NamedTuple

import numpy as np
from psycopg import Connection
from pydantic import BaseModel, Field

from pipelines.database import attendance, calibrations, catalog, crops, decisions, review, students
from pipelines.database.review import (
    AppliedPlan,
    AttendanceWord,
    ReviewedFace,
    ReviewedPhoto,
    ReviewedStudent,
    TakenBack,
)
from pipelines.database.review import Rejection as StoredRejection
from pipelines.errors import ParameterError
from pipelines.faces.similarity import cosine_similarity_matrix
from pipelines.partitions import SessionKey
from pipelines.resources.database import read_one_state
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.services.attendance import Register, read_register
from pipelines.services.context import ServiceContext
from pipelines.services.people_said import (
    NO_NAME,
    StudentWords,
    applied_plan_sentence,
    attendance_sentences,
    by_whom,
    for_reason,
    isolated,
    label,
    taken_back_sentences,
)
from pipelines.services.thresholds import class_spec

FaceState = Literal["sure", "unsure", "unknown", "visitor", "not_a_face"]
Status = Literal["present", "absent", "unsure", "excused", "unknown", "visitor"]

# Students who are proposed for an unknown person.
_PROPOSALS = 2
# Of the faces that were taken from a student who has none, so many of other sessions are told of.
_TOLD = 3


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


class Rejection(BaseModel):
    """That a face does not show a student, as a person has said.

    similarity: calibrated, of the face to the nearest face that shows the student; None where there is none, or where it
    was not asked for.
    """

    student_id: int
    said: Decider
    similarity: float | None = None


class Found(BaseModel):
    """Whom a run took a face for, where people say something else. similarity: calibrated, where it was compared."""

    student_id: int
    in_doubt: bool
    similarity: float | None
    at: datetime | None


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
    rejections: list[Rejection] = Field(description="Students of whom a person has said that this is not their face.")
    found: Found | None = None
    history: list[str] = Field(
        default=[],
        description="What people have said of the group that the face is of, what was undone, and which plans moved it.",
    )
    unusable_reasons: list[str]
    crop_path: str | None = Field(exclude=True, description="For `PhotoStore.read_crop`.")

    @property
    def rejected_ids(self) -> list[int]:
        """The students whom the face does not show, as people have said."""
        return [rejection.student_id for rejection in self.rejections]

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
    name: str = Field(description="For commands; of somebody without a name the one that the pipeline gave.")
    label: str = Field(description="For people: the name, of somebody without one `Unnamed person` and the number.")
    first_seen: str | None = Field(description="The first session with a face of the student.")
    kind: Literal["student", "unknown", "visitor"]
    provisional: bool = Field(description="No person has named the student yet.")
    student_number: str | None
    in_register: bool = Field(description="Has a row in the register.")
    portrait_ids: list[int] = Field(description="Crops of portraits that show the student.")
    crop_ids: list[int] = Field(description="Crops in sessions that show the student.")
    present: int
    counted: int = Field(description="Sessions in which the student is present, absent or unsure.")
    history: list[str] = Field(description="What people have said of who this is, what was undone too.")

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

    by_photos: what the photos alone say; None where no run has judged any photo of the session. crop_ids: faces that show
    the student; doubtful_ids: faces that may (they are in doubt, and the student is the candidate or the runner-up).
    nearest_id: where the photos say "absent", the face that was compared with the student and came nearest, as far as
    stored and not set aside by a person. risk: the probability that an automatic "present" is somebody else, by its surest
    face, for faces of one person in one session are no independent witnesses; None for all other cells, and where no
    similarity is known. why: plain sentences.
    """

    student_id: int
    session_id: int
    status: Status
    by_photos: Literal["present", "absent", "unsure"] | None
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
    set_aside: list[str] = Field(
        description="Students who are no candidates for a person has said so: who, when, why, and how alike they are."
    )

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
    threshold_origin: str = Field(
        description="Whether the class's own or the model's thresholds hold, and by whose word."
    )
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
        """The students' names by id, as commands take them."""
        return {student.student_id: student.name for student in self.students}

    @cached_property
    def names_in_sentences(self) -> dict[int, str]:
        """What the students are called by id, see `isolated`."""
        return {student.student_id: isolated(student.label) for student in self.students}

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
        self.words = StudentWords(
            review.read_student_words(connection, class_id), *students.read_states(connection, class_id)
        )
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

        # Sessions whose photos a run of this lineage has judged.
        self.judged = {*attendance.looked_at_sessions(connection, list(self.sessions)).get(model, [])}
        # Of the cells: what people have set them to, what they have taken back, and which plans have changed them.
        self.attendance_words: dict[tuple[int, int], list[AttendanceWord]] = defaultdict(list)
        self.taken_back_marks: dict[tuple[int, int], list[tuple[TakenBack, str]]] = defaultdict(list)
        self.planned: dict[tuple[int, int], list[str]] = defaultdict(list)
        # What has taken a face, by its crop's id, from which student: words that were taken back, and plans.
        self.taken_from: dict[int, list[tuple[int, str]]] = defaultdict(list)
        self.lost: dict[int, list[Face]] = defaultdict(list)  # see `_add_lost`
        self._add_histories(review.read_origins(connection, class_id, model))
        self._add_words_of_cells()
        self._add_plans(review.read_applied_plans(connection, class_id, model))
        self._add_likeness_of_rejected()
        self._add_lost()
        self.shown = {student_id for student_id, _ in self.showing}
        self.said_visitors = self._said_visitors()
        self.likenesses: dict[int, list[_Likeness]] = {}  # of unknown people, once they are asked about
        self.why_unknown: dict[int, list[str]] = {}  # the same in each session

    @cached_property
    def faces_of(self) -> dict[int, list[Face]]:
        """The faces that show each student, those of portraits included."""
        faces_of: dict[int, list[Face]] = defaultdict(list)
        for (student_id, _), faces in self.showing.items():
            faces_of[student_id] += faces
        return faces_of

    @cached_property
    def known_since(self) -> dict[int, datetime]:
        """When a run found, or a person said, that the first of the faces that are a student's now is theirs."""
        return {
            student_id: min(
                at
                for face in faces
                for found in [face.found.at if face.found and face.found.student_id == student_id else None]
                for at in [found or (face.decider.at if face.decider else None) or datetime.min.replace(tzinfo=UTC)]
            )
            for student_id, faces in self.faces_of.items()
        }

    @cached_property
    def place_of(self) -> dict[int, tuple[Photo, int]]:
        """The photo of each crop, and which of its faces it is, counted from 1 at the left."""
        photos = (*self.portraits, *(photo for shown in self.photos.values() for photo in shown))
        return {face.crop_id: (photo, number) for photo in photos for number, face in enumerate(photo.faces, start=1)}

    def _called(self, student_id: int) -> str:
        """The student in a sentence."""
        person = self.people[student_id]
        return isolated(label(person.id, person.name, person.provisional))

    def _add_histories(self, origins: Mapping[int, int]) -> None:
        """Have each face tell what people have said of the group that it is of, and what was said of it and undone."""
        groups = Counter(
            (origin, self.faces[crop_id].student_id)
            for crop_id, origin in origins.items()
            if crop_id in self.faces and self.faces[crop_id].student_id is not None
        )
        # Once for all faces of a student or a group, of which there may be thousands.
        in_force = cache(self.words.in_force)
        ways = {(origin, into): [*self.words.way(origin, count)] for (origin, into), count in groups.items()}
        for face in self.faces.values():
            if face.decider is None or face.decider.by == "person" or face.student_id is None:
                continue
            origin = origins.get(face.crop_id)
            if origin is not None and self.words.states[origin].merged_into == face.student_id:
                face.history = ways[origin, face.student_id]
            elif face.decider.by == "cluster":
                face.history = in_force(face.student_id)
        of_faces: dict[int, list[tuple[TakenBack, str]]] = defaultdict(list)
        for word in review.read_taken_back(self.connection, self.class_id):
            name = self._called(word.student_id) if word.student_id in self.people else "somebody"
            if word.crop_id is None:
                self.taken_back_marks[word.student_id or 0, word.session_id or 0].append((word, name))
            elif word.crop_id in self.faces:
                of_faces[word.crop_id].append((word, name))
        for crop_id, words in of_faces.items():
            self.faces[crop_id].history = [*self.faces[crop_id].history, *taken_back_sentences(words)]
            # Of each student the last word: a person may have said and taken back the same ten times.
            given = {w.student_id: (w, name) for w, name in words if w.kind in ("confirm", "assign") and w.student_id}
            for student_id, last in given.items():
                self.taken_from[crop_id] += [(student_id, sentence) for sentence in taken_back_sentences([last])]

    def _add_words_of_cells(self) -> None:
        """Have cells tell what people have set them to, the last of which counts."""
        for word in review.read_attendance_words(self.connection, self.class_id):
            self.attendance_words[word.student_id, word.session_id].append(word)

    def _add_lost(self) -> None:
        """The faces of each student that do not show them because of what a person has said or done."""
        for face in self.faces.values():
            losers = {*face.rejected_ids, *(student_id for student_id, _ in self.taken_from.get(face.crop_id, []))}
            if face.found is not None:
                losers.add(face.found.student_id)
            for student_id in losers - {face.student_id}:
                self.lost[student_id].append(face)

    def _add_plans(self, plans: Iterable[AppliedPlan]) -> None:
        """Have faces and cells tell which plans of clustering the class anew have changed them."""
        session_ids = {name: session_id for session_id, (name, _) in self.sessions.items()}
        for plan in plans:
            student_called = cache(lambda name, at=plan.applied_at: self.words.student_called(name, at))
            for moved in plan.moved:
                face = self.faces.get(moved["crop_id"])
                old, new = (
                    None if name is None else student_called(name) or 0
                    for name in (moved["old_student"], moved["new_student"])
                )
                if face is None or old is new is None:
                    continue
                sentence = applied_plan_sentence(plan, self._moved(moved, old, new))
                if face.decider is None or face.decider.by != "person":
                    face.history = [*face.history, sentence]
                if old is not None:
                    self.taken_from[face.crop_id].append((old, sentence))
            for cell in plan.attendance:
                before = f"from “{cell['old_status']}”" if cell["old_status"] else "where nothing stood before"
                place = student_called(cell["student"]) or 0, session_ids.get(cell["session"], 0)
                if cell["new_status"]:
                    self.planned[place].append(
                        applied_plan_sentence(plan, f"made this “{cell['new_status']}” {before}")
                    )

    def _moved(self, moved: Mapping[str, str | None], old: int | None, new: int | None) -> str:
        """What a plan has done to a face that another student had; 0: somebody who is gone."""
        was, now = (self._called(i) if i in self.people else "somebody who is in no list any more" for i in (old, new))
        in_doubt = moved["new_state"] == "needs_review"
        if moved["old_student"] == moved["new_student"]:
            return f"{'left it in doubt whether' if in_doubt else 'settled that'} this face shows {now}"
        given = "gave it to nobody" if new is None else f"gave it to {now}{', in doubt' if in_doubt else ''}"
        return f"found this face with nobody and {given}" if old is None else f"took this face from {was} and {given}"

    def _add_likeness_of_rejected(self) -> None:
        """How alike a face is to a student whom it does not show, as a person has said: no run tells it any more."""
        rejecting = {face.crop_id: set(face.rejected_ids) for face in self.faces.values() if face.rejections}
        wanted = set().union(*rejecting.values())
        known = {
            face.crop_id: student_id
            for (student_id, _), faces in self.showing.items()
            if student_id in wanted
            for face in faces
        }
        if not known or self.alone:
            return
        version = self.context.models.version(self.spec.name)
        ids, vectors = crops.read_embeddings(
            self.connection, self.spec.name, version, {*known, *rejecting}, self.spec.dimension
        )
        place = {crop_id: row for row, crop_id in enumerate(ids)}
        for crop_id in rejecting.keys() & place.keys():
            for rejection in self.faces[crop_id].rejections:
                rows = [place[i] for i, student in known.items() if student == rejection.student_id and i in place]
                if rows:
                    cosine = cosine_similarity_matrix(vectors[[place[crop_id]]], vectors[rows])
                    rejection.similarity = self.spec.calibrated(float(cosine.max()))

    def _said_visitors(self) -> dict[int, Decider]:
        """Who has said that a student is a visitor, by the visitor's id."""
        said = {s.id: decisions.hidden_by(self.connection, s.id) for s in self.people.values() if s.hidden}
        ids = {student_id: decision_id for student_id, decision_id in said.items() if decision_id is not None}
        log = decisions.read_logged(self.connection, self.class_id, list(ids.values())) if ids else {}
        return {
            student_id: _person(word["decided_by"], word["decided_at"], decision_id, word["reason"])
            for student_id, decision_id in ids.items()
            for word in [log[decision_id]]
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
            threshold_origin=self._threshold_origin(),
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

    def _threshold_origin(self) -> str:
        adoption = calibrations.last_adoption(self.connection, self.class_id, self.register.model)
        if adoption is None:
            return (
                f"Nobody has adjusted the limit to this class (attendansee calibrate {self.register.class_name}): it is the "
                "one that the model has for all classes."
            )
        said = (
            f"{by_whom(adoption.adopted_by)} decided so on {adoption.adopted_at:%Y-%m-%d}{for_reason(adoption.reason)}"
        )
        if adoption.calibration_id is None:
            return f"The limit is the one that the model has for all classes. {said}"
        stored = calibrations.find_calibration(self.connection, adoption.calibration_id)
        return (
            f"The limit was measured on this class's own confirmed faces (calibration {stored.id}), so that of strangers "
            f"at most {stored.fpir:.1%} are taken for a student. {said}"
        )

    def _is_asked(self, crop_id: int) -> bool:
        return self.faces[crop_id].session_id in self.asked

    def _face(self, row: ReviewedFace, session_id: int, rejected: Sequence[StoredRejection]) -> Face:
        student = self.people.get(row.student_id) if row.student_id is not None else None
        by_person = row.confirmed or row.taken_off
        decider = None
        if by_person:
            decider = _person(row.decision_by, row.decision_at, row.decision_id, row.decision_reason)
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
            rejections=[
                Rejection(student_id=r.student_id, said=_person(r.decided_by, r.decided_at, r.decision_id, r.reason))
                for r in rejected
            ],
            found=None
            if row.found_id is None
            else Found(
                student_id=row.found_id,
                in_doubt=row.found_state == "needs_review",
                similarity=row.found_similarity if row.found_by == "knn" else None,
                at=row.found_at,
            ),
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
        by_photos: Literal["present", "absent", "unsure"] | None = (
            "present"
            if showing
            else "unsure"
            if candidate
            else "absent"
            if session_id in self.judged and self._usable(session_id)
            else None
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

    def _usable(self, session_id: int) -> list[Photo]:
        """The session's photos but for those that cannot be used."""
        return [photo for photo in self.photos.get(session_id, []) if photo.refused_reason is None]

    def _why(self, cell: Cell) -> list[str]:
        """The cell in plain sentences; those about single faces are `explain_face`."""
        person = self.people[cell.student_id]
        showing = [self.faces[crop_id] for crop_id in cell.crop_ids]
        doubted = [self.faces[crop_id] for crop_id in cell.doubtful_ids]
        name = self._called(person.id)
        photos = self._usable(cell.session_id)
        place = cell.student_id, cell.session_id
        shown_in = len({face.image_id for face in showing})
        sentences = []
        if cell.mark is not None:
            note = f" ({cell.mark.note})" if cell.mark.note else ""
            sentences.append(
                f"{isolated(cell.mark.decided_by)} set “{cell.status}” by hand on {cell.mark.decided_at:%Y-%m-%d}{note}; "
                "nothing automatic changes that."
                + (f" The photos alone say “{cell.by_photos}”." if cell.by_photos is not None else "")
            )
        words = self.attendance_words.get(place, [])
        sentences += attendance_sentences(words[:-1] if cell.mark else words, before=cell.mark is not None)
        sentences += taken_back_sentences(self.taken_back_marks.get(place, []))
        sentences += self.planned.get(place, [])
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
            sentences.append("This session has no photo that can be used: there was none to judge by.")
        elif cell.by_photos is None:
            sentences.append("No run has judged this session's photos yet.")
        elif cell.by_photos == "absent":
            faces = sum(len(photo.faces) for photo in photos)
            sentences.append(
                f"None of the {_many(faces, 'face')} in {_many(len(photos), 'photo')} is taken for {name}."
            )
            sentences += self._why_absent(cell, name, [face for photo in photos for face in photo.faces])
        candidates = [face for face in doubted if face.student_id == cell.student_id]
        if candidates:
            sentences.append(f"{_many(len(candidates), 'face')} may be {name}, in doubt.")
        if second := len(doubted) - len(candidates):
            verb = "has" if second == 1 else "have"
            sentences.append(f"{_many(second, 'face')} in doubt {verb} {name} as the second possibility.")
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
        nearest = None if cell.nearest_id is None else self.faces[cell.nearest_id]
        lost = [face for face in self.lost.get(cell.student_id, []) if face.session_id == cell.session_id]
        said = [(face, *words) for face in lost for words in self._lost(face, cell.student_id)]
        if cell.student_id not in self.shown:
            yield from self._why_no_face(cell, name)
        elif nearest is None:
            yield from self._none_near(cell.student_id, name, faces)
        else:
            spoken_of = lost or any(face.decider is not None and face.decider.by == "person" for face in faces)
            who = self._called(nearest.student_id) if nearest.student_id is not None else None
            became = "It shows nobody known." if who is None else f"It was taken for {who}."
            if nearest.state == "unsure":
                became = f"It is in doubt whether it shows {who}."
            yield (
                f"{'Of the faces of which nobody has said who they are, most' if spoken_of else 'Most'} like {name}, as far "
                f"as figures are kept, is {self._place(nearest, cell.session_id)}: similarity "
                f"{_beside_limit(nearest.runner_up_similarity or 0, self.threshold)}. {became}"
            )
        yield from self._unknown_alike(cell, name)
        best = max((similarity or 0 for _, similarity, _ in said), default=0)
        # Where no figure is kept to compare it with, only one that would have been enough is called so.
        better = best > (nearest.runner_up_similarity or 0) if nearest else best >= self.threshold
        for rank, (face, _, sentence) in enumerate(sorted(said, key=lambda words: -(words[1] or 0))):
            lead = "The best match was set aside. " if better and rank == 0 else ""
            yield f"{lead}Of {self._place(face, cell.session_id)}: {sentence}"
        set_aside = [f for f in faces if f.student_id is None and f.decider is not None and f.decider.by == "person"]
        told = {face.crop_id for face, _, _ in said}
        for face in set_aside:
            if face.crop_id not in told:
                yield f"Of {self._place(face, cell.session_id)}: {_by_person(face, name)}"
        if unknown := sum(face.state == "unknown" for face in faces if face not in set_aside):
            yield f"{_many(unknown, 'other face' if set_aside else 'face')} of this session {'shows' if unknown == 1 else 'show'} nobody known."

    def _why_no_face(self, cell: Cell, name: str) -> Iterator[str]:
        """That no face of an absent student is known, and where there were some, who has taken them."""
        lost = self.lost.get(cell.student_id, [])
        now = "now" if lost or self.words.history(cell.student_id) else "yet"
        yield f"No face of {name} is known {now}, so that no photo can show them: add a portrait or name a face."
        elsewhere = [
            f"Of {self._place(face, cell.session_id)}: {sentence}"
            for face in lost
            if face.session_id != cell.session_id
            for _, sentence in self._lost(face, cell.student_id)
        ]
        yield from elsewhere[:_TOLD]
        more = len(elsewhere) - _TOLD
        if more > 0:
            yield f"In other sessions {_many(more, 'more word')} of this kind {'was' if more == 1 else 'were'} said."

    def _none_near(self, student_id: int, name: str, faces: Sequence[Face]) -> Iterator[str]:
        """That no face has the student as one of the two whom it is most like, as far as it was compared with them."""
        known_since = self.known_since[student_id]
        # One that a decision has left open is "knn" too, and no run has compared it since.
        compared = [
            face.decider.at is None or face.decider.at >= known_since
            for face in faces
            if face.decider is not None and face.decider.by == "knn"
            if face.cosine_similarity is not None or face.runner_up_id is not None
        ]
        older = compared.count(False)
        if older:
            yield (
                f"{_many(older, 'face')} that {'was' if older == 1 else 'were'} compared with the known faces "
                f"{'shows' if older == 1 else 'show'} whom {'it' if older == 1 else 'they'} did before any face that is "
                f"{name}'s now became so, on {known_since:%Y-%m-%d}: no figure with {name} is kept."
            )
        if any(compared) or not older:
            since = len(compared) - older
            yield (
                f"Of the {_many(since, 'face')} that {'was' if since == 1 else 'were'} compared with the known "
                f"faces{' since' if older else ''}, none has {name} among the two students whom it is most like; only these two are kept."
            )

    def _unknown_alike(self, cell: Cell, name: str) -> Iterator[str]:
        """Which unknown people of the session may be the absent student, and what speaks against it."""
        for unknown_id, likenesses in self.likenesses.items():
            if (unknown_id, cell.session_id) not in self.showing:
                continue
            who = f"The unknown person {self._called(unknown_id)}"
            for likeness in likenesses:
                similarity = self.spec.calibrated(likeness.cosine_similarity)
                if likeness.obstacle is None:
                    if likeness.student_id == cell.student_id:
                        yield f"{who} is most like {name}: similarity {_beside_limit(similarity, self.threshold)}."
                    break
                if likeness.student_id == cell.student_id and similarity >= self.threshold:
                    yield (
                        f"{who} is alike enough to {name}, similarity {_beside_limit(similarity, self.threshold)}, but "
                        f"{self._against(unknown_id, likeness)}."
                    )

    def _lost(self, face: Face, student_id: int) -> Iterator[tuple[float | None, str]]:
        """How alike a face is to a student whom it does not show, and in words what has taken it from them."""
        name = self._called(student_id)
        for rejection in face.rejections:
            if rejection.student_id == student_id:
                yield rejection.similarity, _rejected(rejection, name, self.threshold, its="its")
        found = face.found
        by_person = face.decider is not None and face.decider.by == "person"
        if found is not None and found.student_id == student_id and by_person:
            similarity = "" if found.similarity is None else f", similarity {found.similarity:.2f}"
            taken = (
                f"it was in doubt whether it shows {name}" if found.in_doubt else f"it was taken for {name} at first"
            )
            yield found.similarity, f"{taken}{similarity}. {_by_person(face, self._name_of(face))}"
        for taken_from, sentence in self.taken_from.get(face.crop_id, []):
            if taken_from == student_id:
                yield None, sentence

    def _name_of(self, face: Face) -> str:
        return "nobody" if face.student_id is None else self._called(face.student_id)

    def _place(self, face: Face, session_id: int | None = None) -> str:
        """Where a face is, in words, without the session where it is this one."""
        photo, number = self.place_of[face.crop_id]
        place = f"face {number} from the left in {photo.file_name}"
        if face.crop_id in self.portrait_faces:
            return f"{place}, a portrait"
        return place if face.session_id == session_id else f"{place} of {self.sessions[face.session_id][0]}"

    def _against(self, unknown_id: int, likeness: _Likeness) -> str:
        """What speaks against that an unknown person is a student, and of which face or photo it does."""
        name = self._called(likeness.student_id)
        of_person = [face for face in self.faces_of[unknown_id] if face.crop_id not in self.portrait_faces]
        if likeness.obstacle == "beside":
            photo = next(
                photo
                for photo, _ in (self.place_of[face.crop_id] for face in of_person)
                if any((other.student_id, other.state) == (likeness.student_id, "sure") for other in photo.faces)
            )
            return f"{photo.file_name} of {self.sessions[photo.session_id][0]} shows {name} beside this person"
        spoken_of = [(f, r) for f in of_person for r in f.rejections if r.student_id == likeness.student_id]
        face, rejection = spoken_of[0]
        said = _said(rejection.said, f"this is not {name}").removesuffix(".")
        text = f"of {self._place(face)} {said}"
        if more := len(spoken_of) - 1:
            text += f"; so it was said of {_many(more, 'more face')}"
        if others := len(of_person) - len(spoken_of):
            text += f"; {_many(others, 'other face')} of this person {'belongs' if others == 1 else 'belong'} with it"
        return text

    def _why_unknown(self, student_id: int) -> Iterator[str]:
        """Why an unknown person is none of the named students: who comes nearest now, and what speaks against it."""
        likenesses, alike = self.likenesses.get(student_id, []), False
        for likeness in likenesses:
            name = self._called(likeness.student_id)
            similarity = self.spec.calibrated(likeness.cosine_similarity)
            if likeness.obstacle is None:
                yield f"Of the named students {name} is most like this person: similarity {_beside_limit(similarity, self.threshold)}."
                if similarity >= self.threshold:
                    yield (
                        "That is by the one face that is most alike; decided was by what all faces of a student have in "
                        "common, as far as they were known then. The question about this person settles it."
                    )
                return
            if similarity >= self.threshold:
                alike = True
                yield (
                    f"{name} is alike enough, similarity {_beside_limit(similarity, self.threshold)}, but "
                    f"{self._against(student_id, likeness)}."
                )
        if likenesses and not alike:
            yield (
                "No named student is alike enough; besides, a photo shows each of them beside this person, or somebody has "
                "said that it is not them."
            )

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
        found = []
        for person in listed:
            of_person = self.faces_of.get(person.id, [])
            portraits = [face.crop_id for face in of_person if face.crop_id in self.portrait_faces]
            counted = [status for status in statuses[person.id] if status in ("present", "absent", "unsure")]
            found.append(
                StudentReview(
                    student_id=person.id,
                    name=person.name,
                    label=label(person.id, person.name, person.provisional),
                    first_seen=next(
                        (name for i, (name, _) in self.sessions.items() if self.showing.get((person.id, i))), None
                    ),
                    kind="visitor" if person.hidden else "unknown" if person.provisional else "student",
                    provisional=person.provisional,
                    student_number=person.student_number,
                    in_register=person.name in (*self.register.students, *self.register.unknown),
                    portrait_ids=portraits,
                    crop_ids=[face.crop_id for face in of_person if face.crop_id not in portraits],
                    present=counted.count("present"),
                    counted=len(counted),
                    history=self.words.history(person.id),
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
        names = [self._called(student) for student, _ in pairs]
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
            set_aside=self._set_aside(faces, best.similarity),
        )

    def _set_aside(self, faces: Sequence[Face], similarity: float | None) -> list[str]:
        """Whom people have said that the faces do not show; similarity: of the first candidate."""
        nearest: dict[int, tuple[Face, Rejection]] = {}
        for shown, rejection in ((face, rejection) for face in faces for rejection in face.rejections):
            before = nearest.get(rejection.student_id)
            if before is None or (rejection.similarity or 0) > (before[1].similarity or 0):
                nearest[rejection.student_id] = shown, rejection
        best = max((rejection.similarity or 0 for _, rejection in nearest.values()), default=0)
        sentences = []
        for face, rejection in sorted(nearest.values(), key=lambda said: -(said[1].similarity or 0)):
            if rejection.student_id not in self.people:
                continue
            name = self._called(rejection.student_id)
            told = _rejected(rejection, name, self.threshold)
            if len(faces) > 1:  # the others were not spoken of
                told = f"Of {self._place(face)}: {_rejected(rejection, name, self.threshold, its='its')}"
            enough = self.threshold if similarity is None else similarity
            is_best = rejection.similarity is not None and rejection.similarity == best > enough
            sentences.append(f"{'The best match' if is_best else 'Also'} was set aside by a person. {told}")
        return sentences

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
                set_aside=self._set_aside([self.faces[crop_id] for crop_id in student.crop_ids], None),
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
    name = found.names_in_sentences.get(face.student_id or 0, "somebody else")
    if face.decider.by == "person":
        return " ".join([_by_person(face, name), *face.history])
    if face.student_id is None:
        sentences = _why_nobody(found, face)
    elif face.decider.by == "cluster":
        sentences = [_why_with_others(face, name)]
    else:
        sentences = [_comparison(found, face, name)]
    if face.state == "unsure":
        sentences.append(f"In doubt: {_why_in_doubt(found, face, name)}.")
    sentences += face.history
    for rejection in face.rejections:
        if rejection.student_id in found.names_in_sentences:
            sentences.append(_rejected(rejection, found.names_in_sentences[rejection.student_id], found.threshold))
    if face.decider.at:
        # A rejection leaves the run's name, but none of what it found; a doubt that a person's word makes leaves both.
        found_something = face.cosine_similarity is not None or face.runner_up_id is not None or not face.rejections
        of_run = face.decider.run_id if found_something else None
        decided = f"Decided automatically (run {of_run[:8]})" if of_run else "Decided automatically"
        sentences.append(f"{decided}; unchanged since {face.decider.at:%Y-%m-%d}.")
    return " ".join(sentences)


def _why_with_others(face: Face, name: str) -> str:
    """Why a face shows whom the faces show that it was put together with."""
    if face.similarity is not None:
        return f"Looks like other faces of {name}: average similarity {face.similarity:.2f}."
    if face.state == "unknown":
        return "Like no other face of the session."
    if face.history:
        return "No similarity is known: the name comes from what people have said of the faces that it is with."
    return f"Like no other face of the session, so that no similarity is known: it was {name} before."


def _comparison(found: Review, face: Face, name: str) -> str:
    names = found.names_in_sentences
    text = "Compared with the known faces"
    if face.similarity is not None:
        text += f": similarity to {name} {_beside_limit(face.similarity, found.threshold)}"
    if face.runner_up_id not in names or face.runner_up_similarity is None:
        return f"{text}; of nobody else a figure is kept."
    behind = face.margin is not None and face.margin < 0
    text += (
        f"; {'more alike is' if behind else 'next comes'} {names[face.runner_up_id]}, {face.runner_up_similarity:.2f}"
    )
    if face.margin is not None and not behind:
        text += f"; {name} is ahead by {_beside_limit(face.margin, found.review_margin, 3)}"
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
        return [f"No known face is alike enough; the most alike is {name}: similarity {similarity}.", *poor]
    but = "when it was decided more was needed; when the session is processed again, what is needed now counts"
    if other := _other_face_of(found, face, face.runner_up_id):
        but = f"{other} shows {name} already, and nobody is twice in a photo"
    return [f"The most alike is {name}: similarity {similarity}. That is enough, but {but}.", *poor]


def _why_in_doubt(found: Review, face: Face, name: str) -> str:
    if other := _other_face_of(found, face, face.student_id):
        return f"{other} shows {name} already, and nobody is twice in a photo"
    rival = found.names_in_sentences.get(face.runner_up_id or 0)
    if rival is not None and face.margin is not None and face.margin < 0:
        if other := _other_face_of(found, face, face.runner_up_id):
            return f"{other} shows {rival} already, and {name} is the most alike of the others"
        return f"it may be {rival}, who is more alike"
    if face.margin is not None and face.margin < found.review_margin:
        return f"{name} is too little ahead"
    if face.decider is not None and face.decider.by == "cluster":
        return "the faces that it was put with may be of more than one person"
    return (
        f"when it was decided another face, of this photo or of one that was taken for the same person, was {name}, or "
        f"{name} had to be further ahead"
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


def _by_person(face: Face, name: str) -> str:
    decider = face.decider
    assert decider is not None, "asked for faces with one only"
    if decider.name == "enrolment":
        return f"The portrait of {name}, by the name of its file."
    what = {
        "not_a_face": "this is no face",
        "unknown": f"this is {name}" if face.student_id else NO_NAME,
        "visitor": f"this is {name}, a visitor",
    }.get(face.state, f"this is {name}")
    return _said(decider, what)


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


def _person(name: str | None, at: datetime | None, decision_id: int | None, reason: str | None) -> Decider:
    """That a person has decided, and what is known of it."""
    return Decider(by="person", name=name, at=at, decision_id=decision_id, reason=reason)


def _said(decider: Decider | None, what: str) -> str:
    """A person's word in a sentence: who has said it, when, and why; of None that somebody has."""
    said = decider or Decider(by="person")
    when = f" on {said.at:%Y-%m-%d}" if said.at else ""
    return f"{by_whom(said.name)} said{when} that {what}{for_reason(said.reason)}"


def _rejected(rejection: Rejection, name: str, threshold: float, *, its: str = "Its") -> str:
    """That a face does not show a student, as a person has said, whatever the similarity."""
    said = _said(rejection.said, f"this is not {name}")
    if rejection.similarity is None:
        return said
    link = "would be enough, but" if rejection.similarity >= threshold else "is too small anyway;"
    return f"{its} similarity to {name}, {rejection.similarity:.2f}, {link} {said}"


def _beside_limit(value: float, limit: float, digits: int = 2) -> str:
    """A figure and what is needed, with as many digits, up to six, as tell the two apart."""
    while digits < 6 and value != limit and f"{value:.{digits}f}" == f"{limit:.{digits}f}":
        digits += 1
    return f"{value:.{digits}f} ({limit:.{digits}f} is needed)"


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
