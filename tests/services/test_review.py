"""What a teacher is shown of a class: states of faces, reasons of cells, the expected errors, the queue of questions."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.database import calibrations, catalog, crops, students
from pipelines.errors import AttendanseeError, ConflictError
from pipelines.partitions import SessionKey
from pipelines.services.attendance import AttendanceService
from pipelines.services.context import default_context
from pipelines.services.decision_log import read_decisions
from pipelines.services.decisions import DecisionService
from pipelines.services.reclustering import ReclusteringConfig, ReclusteringService
from pipelines.services.review import Cell, Face, Question, Review, _beside_limit, explain_face, isolated, read_review


@pytest.fixture
def school(embedded_class, process_class, database) -> Callable[..., Review]:
    """The class "m" with portraits of Ada, Bob and Cem; two sessions, and Eve, whom nobody knows, in both."""
    embedded_class.enrol("m", "Ada", "Bob", "Cem")
    made = embedded_class.session("m__s1", [["Ada", "Bob", "Eve"], ["Ada", "Eve"]])
    later = embedded_class.session("m__s2", [["Bob", "Eve"]])
    process_class("dlib")
    crops = {("s1", *place): crop_id for place, crop_id in made.items()}
    crops |= {("s2", *place): crop_id for place, crop_id in later.items()}

    def read(session: str | None = None) -> Review:
        return read_review(default_context(), "m", session_name=session)

    read.crops = crops  # type: ignore[attr-defined]
    return read


def cell_of(review: Review, student: str, session: str) -> Cell:
    (student_id,) = [s.student_id for s in review.students if s.name == student]
    (session_id,) = [s.session_id for s in review.sessions if s.name == session]
    (cell,) = [c for c in review.cells if (c.student_id, c.session_id) == (student_id, session_id)]
    return cell


def student_id(review: Review, name: str) -> int:
    return next(s.student_id for s in review.students if s.name == name)


def called(review: Review, name: str) -> str:
    return next(s.label for s in review.students if s.name == name)


def eve(review: Review) -> str:
    (name,) = [s.name for s in review.students if s.kind == "unknown"]
    return name


def doubt(database, crop_ids: list[int], rival: int, cosine: float = 0.94, rival_cosine: float = 0.938) -> None:
    """Let the lineage be in doubt about these crops, as a run leaves them whose lead is too small."""
    with database.connection() as connection:
        connection.execute(
            """UPDATE assignments SET state = 'needs_review', cosine_similarity = %s, similarity = 0.7,
            runner_up_id = %s, runner_up_cosine_similarity = %s WHERE crop_id = ANY(%s)""",
            [cosine, rival, rival_cosine, crop_ids],
        )
    service = AttendanceService(database, "dlib")
    for session in ("s1", "s2"):
        service.register_session(read_key(session))


def read_key(session: str) -> SessionKey:
    return SessionKey("m", session)


def test_every_cell_of_the_register_says_why(school):
    review = school()
    statuses = {
        (s.name, session.name): cell_of(review, s.name, session.name).status
        for s in review.students
        if s.kind == "student"
        for session in review.sessions
    }
    assert statuses == {
        ("Ada", "s1"): "present",
        ("Ada", "s2"): "absent",
        ("Bob", "s1"): "present",
        ("Bob", "s2"): "present",
        ("Cem", "s1"): "absent",
        ("Cem", "s2"): "absent",
    }
    present = cell_of(review, "Ada", "s1")
    assert sorted(present.crop_ids) == sorted(school.crops["s1", photo, "Ada"] for photo in (0, 1))
    assert present.why[0] == "2 faces in 2 of 2 photos show Ada."
    face = review.faces()[present.crop_ids[0]]
    assert face.state == "sure"
    assert face.similarity is not None
    assert face.similarity > review.threshold
    assert face.decider is not None
    assert face.decider.by == "knn"
    assert f"similarity to Ada {face.similarity:.2f}" in explain_face(review, face)
    assert "; next comes " in explain_face(review, face)
    assert f"; Ada is ahead by {face.margin:.3f} (0.010 is needed)." in explain_face(review, face)
    assert "In doubt" not in explain_face(review, face)
    absent = cell_of(review, "Cem", "s1")
    assert absent.why[0] == "None of the 5 faces in 2 photos is taken for Cem."
    assert "2 faces of this session show nobody known." in absent.why
    assert cell_of(review, eve(review), "s1").status == "unknown"


def nobody(database, crop_id: int, runner_up: int, cosine: float, run_id: str | None = None) -> None:
    """Let the crop be a face that matched nobody, with this likest student, as a run leaves it."""
    with database.connection() as connection:
        connection.execute(
            """UPDATE assignments SET state = 'no_match', student_id = NULL, decided_by = 'knn', cosine_similarity = NULL,
            similarity = NULL, runner_up_id = %s, runner_up_cosine_similarity = %s, run_id = %s WHERE crop_id = %s""",
            [runner_up, cosine, run_id, crop_id],
        )


def test_an_unknown_face_says_why_the_likest_student_was_passed_over(school, database):
    first, crop_id = school(), school.crops["s1", 0, "Eve"]
    ada, cem = student_id(first, "Ada"), student_id(first, "Cem")

    def why(runner_up: int, cosine: float) -> str:
        nobody(database, crop_id, runner_up, cosine, "abcdefgh-1")
        review = school()
        return explain_face(review, review.faces()[crop_id])

    (photo,) = [p for p in first.sessions[0].photos if crop_id in {face.crop_id for face in p.faces}]
    number = [face.crop_id for face in photo.faces].index(school.crops["s1", 0, "Ada"]) + 1
    beside = why(ada, 0.95)
    assert beside.startswith("The most alike is Ada: similarity ")
    assert f"That is enough, but face {number} from the left in the photo shows Ada already" in beside
    assert "poor to see" not in beside
    assert "Decided automatically (run abcdefgh); unchanged since " in beside
    alone = why(cem, 0.95)
    assert "shows Cem already" not in alone
    assert "That is enough, but when it was decided more was needed" in alone
    far = why(ada, 0.9)
    assert far.startswith("No known face is alike enough; the most alike is Ada: similarity ")
    assert "That is enough" not in far
    with database.connection() as connection:
        connection.execute("UPDATE face_crops SET unusable_reasons = '{too small}' WHERE id = %s", [crop_id])
    assert "It is poor to see (too small)." in why(ada, 0.9)


def test_a_face_without_a_stored_comparison_does_not_say_that_there_was_one(school, database):
    crop_id = school.crops["s2", 0, "Bob"]
    with database.connection() as connection:
        connection.execute("UPDATE assignments SET run_id = 'abcdefgh-1'")
    DecisionService("ann").reject(crop_id, student_id(school(), "Bob"))
    review = school()
    text = explain_face(review, review.faces()[crop_id])
    assert text.startswith("No comparison with anybody else is stored. Its similarity to Bob, ")
    assert re.search(
        r"would be enough, but ann said on [\d-]{10} that this is not Bob\. Decided automatically; unch", text
    )
    assert "abcdefgh" not in text
    absent = cell_of(review, "Bob", "s2").why
    assert any(
        re.search(r"Of face 1 from the left in 0.jpg: its similarity to Bob, 0.\d\d, would be enough, but ann said", w)
        for w in absent
    )
    assert not any("this is not Cem" in sentence for sentence in cell_of(review, "Cem", "s2").why)


def test_an_absent_student_says_who_came_nearest(school, database):
    first = school()
    ada, cem = student_id(first, "Ada"), student_id(first, "Cem")
    with database.connection() as connection:
        connection.execute("UPDATE assignments SET runner_up_id = %s WHERE runner_up_id = %s", [ada, cem])
    review = school()
    cell = cell_of(review, "Cem", "s1")
    assert cell.nearest_id is None
    assert (
        "Of the 3 faces that were compared with the known faces, none has Cem among the two students whom it is most like; "
        "only these two are kept." in cell.why
    )
    nearer, farther = school.crops["s1", 0, "Bob"], school.crops["s1", 0, "Ada"]
    with database.connection() as connection:
        for crop_id, cosine in {nearer: 0.9, farther: 0.8}.items():
            connection.execute(
                "UPDATE assignments SET runner_up_id = %s, runner_up_cosine_similarity = %s WHERE crop_id = %s",
                [cem, cosine, crop_id],
            )
    review = school()
    cell = cell_of(review, "Cem", "s1")
    assert cell.nearest_id == nearer
    photo, number = review.places[nearer]
    similarity = review.faces()[nearer].runner_up_similarity
    assert (
        f"Most like Cem, as far as figures are kept, is face {number} from the left in {photo.file_name}: similarity {similarity:.2f} (0.58 is needed). "
        "It was taken for Bob." in cell.why
    )
    assert not any("none has Cem" in sentence for sentence in cell.why)
    assert cell_of(review, "Ada", "s1").nearest_id is None  # present
    nobody(database, nearer, cem, 0.9)
    assert any(sentence.endswith("It shows nobody known.") for sentence in cell_of(school(), "Cem", "s1").why)


def test_an_absent_student_says_what_people_said_of_faces(school):
    assert not any(sentence.startswith("Of face ") for sentence in cell_of(school(), "Cem", "s1").why)
    DecisionService("ann").unassign(school.crops["s1", 0, "Ada"], "no idea")
    DecisionService("ann").not_a_face([school.crops["s1", 1, "Ada"]])
    review = school()
    words = {0: r"this is to have no name: no idea\.", 1: r"this is no face\."}
    taken = r"it was taken for Ada at first, similarity 0\.\d\d\. "
    for name, before in (("Ada", taken), ("Cem", "")):
        heard = [sentence for sentence in cell_of(review, name, "s1").why if "Of face " in sentence]
        assert len(heard) == 2
        for photo, word in words.items():
            said = rf"Of face \d from the left in {photo}\.jpg: {before}ann said on {DATE} that {word}"
            assert [bool(re.search(rf"{said}$", sentence)) for sentence in heard].count(True) == 1
        assert sum(sentence.startswith("The best match was set aside. ") for sentence in heard) == (name == "Ada")
    assert not any(sentence.startswith("Of face ") for sentence in cell_of(review, "Cem", "s2").why)


def looks_like(database, crop_ids: list[int], other: int) -> None:
    """Give the crops the vector of another one."""
    version = default_context().models.version("dlib")
    with database.connection() as connection:
        _, vectors = crops.read_embeddings(connection, "dlib", version, [other], 128)
        crops.write_embeddings(connection, "dlib", version, crop_ids, vectors.repeat(len(crop_ids), axis=0))


def test_an_unknown_person_says_which_student_is_likest_and_why_it_is_not_that_one(school, database):
    first = school()
    unknown = eve(first)
    (likest,) = [w for w in cell_of(first, unknown, "s1").why if "is most like this person" in w]
    assert "(0.58 is needed)" in likest
    assert not any("by the one face" in w for w in cell_of(first, unknown, "s1").why)
    assert any("is most like this person" in w for w in cell_of(first, unknown, "s2").why)
    assert not any("is most like this person" in w for w in cell_of(first, "Ada", "s1").why)
    faces = [crop_id for place, crop_id in school.crops.items() if place[2] == "Eve"]

    portrait = {s.name: s.portrait_ids[0] for s in first.students if s.portrait_ids}
    looks_like(database, faces, portrait["Cem"])
    review = school()
    why = cell_of(review, unknown, "s1").why
    assert any(w.startswith("Of the named students Cem is most like") for w in why)
    assert any("by the one face that is most alike" in w for w in why)
    assert any(
        w.startswith(f"The unknown person {called(review, unknown)} is most like Cem")
        for w in cell_of(review, "Cem", "s1").why
    )

    DecisionService("ann").reject(faces[0], student_id(first, "Cem"))
    why = cell_of(school(), unknown, "s1").why
    assert any(
        re.match(r"Cem is alike enough, .*, but of face \d from .* ann said on [\d-]{10} that this is not Cem;", w)
        for w in why
    )
    assert not any("Of the named students Cem" in w for w in why)

    looks_like(database, faces, portrait["Bob"])
    why = cell_of(school(), unknown, "s1").why
    assert any(
        w.startswith("Bob is alike enough") and "but 0.jpg of s1 shows Bob beside this person." in w for w in why
    )


def test_a_doubt_says_what_stands_against_the_student(school, database):
    crops_, first = school.crops, school()
    ada, bob = student_id(first, "Ada"), student_id(first, "Bob")

    def why(photo: int, name: str, **changes: object) -> str:
        crop_id = crops_["s1", photo, name]
        with database.connection() as connection:
            columns = ", ".join(f"{column} = %s" for column in changes)
            connection.execute(
                f"UPDATE assignments SET state = 'needs_review', {columns} WHERE crop_id = %s",
                [*changes.values(), crop_id],
            )
        review = school()
        return explain_face(review, review.faces()[crop_id])

    second = why(0, "Bob", student_id=ada, runner_up_cosine_similarity=0.5, cosine_similarity=0.95)
    assert "In doubt: face " in second
    assert "shows Ada already, and nobody is twice in a photo." in second
    more_alike = why(
        0, "Bob", student_id=bob, runner_up_id=ada, cosine_similarity=0.94, runner_up_cosine_similarity=0.96
    )
    assert "; more alike is Ada" in more_alike
    assert "shows Ada already, and Bob is the most alike of the others" in more_alike
    assert "ahead" not in more_alike
    alone = why(1, "Ada", student_id=ada, runner_up_id=bob, cosine_similarity=0.94, runner_up_cosine_similarity=0.96)
    assert "In doubt: it may be Bob, who is more alike." in alone
    far = why(1, "Ada", student_id=ada, runner_up_id=bob, cosine_similarity=0.98, runner_up_cosine_similarity=0.5)
    assert "In doubt: when it was decided another face" in far


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_figure_that_falls_short_does_not_look_enough(value, limit):
    shown, needed = _beside_limit(value, limit).removesuffix(" is needed)").split(" (")
    assert (float(shown), float(needed)) == pytest.approx((value, limit), abs=0.006)
    if abs(value - limit) > 2e-6:
        assert (float(shown) < float(needed)) == (value < limit)
    assert _beside_limit(0.5796, 0.5813) == "0.580 (0.581 is needed)"
    assert _beside_limit(0.9, 0.5813) == "0.90 (0.58 is needed)"


def test_a_student_without_any_known_face_is_absent_for_that_reason(school, database):
    with database.connection() as connection:
        students.add_student(connection, catalog.find_class(connection, "m"), "Zoe", "17", None)
    for session in ("s1", "s2"):
        AttendanceService(database, "dlib").register_session(read_key(session))
    assert any("No face of Zoe is known yet" in sentence for sentence in cell_of(school(), "Zoe", "s1").why)
    assert not any("is known yet" in sentence for sentence in cell_of(school(), "Cem", "s1").why)


def test_a_mark_by_hand_is_shown_with_who_why_and_what_the_photos_say(school):
    before = school()
    session_id = before.sessions[0].session_id
    DecisionService("ann").mark_attendance(session_id, student_id(before, "Cem"), "excused", "ill")
    review = school()
    cell = cell_of(review, "Cem", "s1")
    assert (cell.status, cell.by_photos) == ("excused", "absent")
    assert cell.mark is not None
    assert (cell.mark.decided_by, cell.mark.note) == ("ann", "ill")
    assert "ann set “excused” by hand" in cell.why[0]
    assert "(ill)" in cell.why[0]
    (cem,) = [s for s in review.students if s.name == "Cem"]
    assert (cem.present, cem.counted) == (0, 1)  # excused counts in no rate
    assert review.sessions[0].counts["excused"] == 1


def test_the_states_of_faces_follow_what_people_say(school, database):
    crops, decide = school.crops, DecisionService("ann")
    first = school()
    decide.assign(crops["s1", 0, "Bob"], student_id(first, "Bob"), "I know him")
    decide.not_a_face([crops["s1", 0, "Ada"]], "a poster")
    decide.reject(crops["s2", 0, "Bob"], student_id(first, "Bob"))
    review = school()
    faces = review.faces()
    bob = faces[crops["s1", 0, "Bob"]]
    assert (bob.state, bob.similarity, bob.risk) == ("sure", None, 0.0)
    assert "ann said" in explain_face(review, bob)
    assert "that this is Bob: I know him." in explain_face(review, bob)
    poster = faces[crops["s1", 0, "Ada"]]
    assert (poster.state, poster.student_id) == ("not_a_face", None)
    assert "that this is no face: a poster." in explain_face(review, poster)
    assert crops["s1", 0, "Ada"] not in cell_of(review, "Ada", "s1").crop_ids
    rejected = faces[crops["s2", 0, "Bob"]]
    assert rejected.state == "unknown"
    assert re.search(r"ann said on [\d-]{10} that this is not Bob\.", explain_face(review, rejected))
    portrait = faces[next(s for s in review.students if s.name == "Ada").portrait_ids[0]]
    assert explain_face(review, portrait) == "The portrait of Ada, by the name of its file."


def test_a_visitor_is_in_no_row_and_counted_apart(school, database):
    first = school()
    DecisionService("ann").hide(student_id(first, eve(first)), "a guest")
    review = school()
    (visitor,) = [s for s in review.students if s.kind == "visitor"]
    assert not visitor.in_register
    why = cell_of(review, visitor.name, "s1").why
    assert any(w.startswith("ann said on ") and w.endswith(f"that {visitor.label} is a visitor: a guest.") for w in why)
    assert f"2 faces in 2 of 2 photos show {visitor.label}." in why
    assert not any("visitor" in w for w in cell_of(review, "Ada", "s1").why)
    assert [session.counts["visitor"] for session in review.sessions] == [1, 1]
    assert {review.faces()[c].state for c in visitor.crop_ids} == {"visitor"}
    assert review.questions == []
    register = AttendanceService(database, "dlib").register("m")
    assert register.visitors == [visitor.name]
    assert [row[0] for row in register.rows()] == ["Ada", "Bob", "Cem"]
    assert visitor.name not in register.to_csv()


def test_faces_of_one_person_in_one_session_are_one_question(school, database):
    crops, first = school.crops, school()
    doubt(database, [crops["s1", 0, "Ada"], crops["s1", 1, "Ada"]], student_id(first, "Cem"))
    review = school()
    (question,) = [q for q in review.questions if q.kind == "which"]
    assert sorted(question.crop_ids) == sorted([crops["s1", 0, "Ada"], crops["s1", 1, "Ada"]])
    assert [c.student_id for c in question.candidates] == [student_id(review, "Ada"), student_id(review, "Cem")]
    # Ada is unsure, and Cem, absent so far, is near enough to be the one: both cells hang on the answer.
    session_id = review.sessions[0].session_id
    assert question.cells == [(student_id(review, name), session_id) for name in ("Ada", "Cem")]
    assert cell_of(review, "Ada", "s1").status == "unsure"
    assert "may be Ada, in doubt" in cell_of(review, "Ada", "s1").why[0]
    assert any("2 faces in doubt have Cem as the second possibility." in w for w in cell_of(review, "Cem", "s1").why)
    text = explain_face(review, review.faces()[question.crop_ids[0]])
    assert "; Ada is ahead by 0.002 (0.010 is needed). In doubt: Ada is too little ahead." in text


def test_two_faces_of_one_photo_are_two_questions(school, database):
    crops, first = school.crops, school()
    ada = student_id(first, "Ada")
    doubt(database, [crops["s1", 0, "Ada"], crops["s1", 0, "Bob"]], student_id(first, "Cem"))
    with database.connection() as connection:
        connection.execute("UPDATE assignments SET student_id = %s WHERE crop_id = %s", [ada, crops["s1", 0, "Bob"]])
    questions = [q for q in school().questions if q.kind == "which"]
    assert sorted(q.crop_ids for q in questions) == sorted([[crops["s1", 0, "Ada"]], [crops["s1", 0, "Bob"]]])


def test_the_question_that_settles_most_cells_comes_first_and_settled_ones_count_no_more(school, database):
    crops, first = school.crops, school()
    # Doubt about one of Ada's two faces: the other one has settled her cell, and Bob, the runner-up, is far away.
    doubt(database, [crops["s1", 0, "Ada"]], student_id(first, "Bob"), rival_cosine=0.5)
    review = school()
    assert [(q.kind, q.settles) for q in review.questions] == [("who", 2), ("which", 0)]
    assert review.left == 1
    (who, _) = review.questions
    assert who.student_id == student_id(review, eve(review))
    assert len(who.crop_ids) == 3
    assert who.text == "Who is this person, seen in 2 sessions: a student, somebody new, or a visitor?"
    assert {c.student_id for c in who.candidates} < {student_id(review, n) for n in ("Ada", "Bob", "Cem")}
    DecisionService("ann").rename(who.student_id, "Eve")
    assert school().left == 0


def test_an_answer_closes_its_question(school, database):
    crops, first = school.crops, school()
    doubt(database, [crops["s1", 0, "Ada"], crops["s1", 1, "Ada"]], student_id(first, "Cem"))
    (question,) = which(school())
    DecisionService("ann").assign_crops(question.crop_ids, question.candidates[0].student_id)
    review = school()
    assert which(review) == []
    assert cell_of(review, "Ada", "s1").status == "present"
    assert review.sessions[0].expected_false_present == pytest.approx(cell_of(review, "Bob", "s1").risk)


def which(review: Review) -> list[Question]:
    return [q for q in review.questions if q.kind == "which"]


def test_the_expected_false_present_is_what_the_cells_risk_together(school):
    review = school()
    session = review.sessions[0]
    risks = [cell_of(review, name, "s1").risk for name in ("Ada", "Bob")]
    assert None not in risks
    assert session.expected_false_present == pytest.approx(sum(risks))
    assert 0 < session.expected_false_present < 0.2
    before = session.expected_false_present
    DecisionService("ann").assign(school.crops["s1", 0, "Ada"], student_id(review, "Ada"))
    assert school().sessions[0].expected_false_present == pytest.approx(before - risks[0])


@pytest.mark.parametrize(
    ("similarity", "runner_up", "risk"), [(0.5, None, 0.5), (0.9, 0.5, 2 / 11), (0.9, 0.9, 10 / 19), (0.99, 0.01, 0.01)]
)
def test_the_risk_weighs_student_runner_up_and_stranger(similarity, runner_up, risk):
    face = compared_face(similarity, runner_up)
    assert face.risk == pytest.approx(risk, abs=1e-3)
    assert face.margin == pytest.approx(0.05)


@given(*[st.floats(0, 1)] * 4)
def test_the_risk_falls_with_the_similarity_and_rises_with_the_runner_ups(one, other, low, high):
    nearer, farther = max(one, other), min(one, other)
    few, many = min(low, high), max(low, high)
    assert 0 <= compared_face(nearer, few).risk <= compared_face(farther, few).risk <= 1
    assert compared_face(nearer, few).risk <= compared_face(nearer, many).risk <= 1


def compared_face(similarity: float, runner_up: float | None) -> Face:
    return Face(
        **{"crop_id": 1, "image_id": 1, "session_id": 1, "box": (0, 0, 1, 1), "state": "sure", "student_id": 1},
        similarity=similarity,
        cosine_similarity=0.95,
        runner_up_id=2,
        runner_up_similarity=runner_up,
        runner_up_cosine_similarity=0.9,
        decider={"by": "knn"},
        **{"rejections": [], "unusable_reasons": [], "crop_path": None},
    )


def test_one_session_alone_has_its_cells_and_what_its_questions_need(school):
    whole, review = school(), school("s2")
    assert [session.name for session in review.sessions] == ["s2"]
    session_id = review.sessions[0].session_id
    assert {cell.session_id for cell in review.cells} == {session_id}
    assert [c for c in whole.cells if c.session_id == session_id] == review.cells
    (who,) = review.questions
    assert set(who.crop_ids) <= set(review.faces())
    assert who.settles == 2  # its answer settles the other session too


@pytest.mark.parametrize(("session", "words"), [("never", "is not registered"), ("enrol", "holds portraits")])
def test_a_session_without_attendance_is_named(school, session, words):
    with pytest.raises(AttendanseeError, match=words):
        school(session)


def test_where_nobody_is_named_the_unknown_people_are_the_register_and_each_is_a_question(
    embedded_class, process_class
):
    embedded_class.session("m__s1", [["Ada", "Bob"], ["Ada"]])
    process_class("dlib")
    review = read_review(default_context(), "m")
    assert [cell.status for cell in review.cells] == ["present", "present"]
    assert [(q.kind, q.settles, q.candidates) for q in review.questions] == [("who", 1, [])] * 2
    # Nobody can be taken for somebody else who has no name.
    assert review.sessions[0].expected_false_present == 0


def test_only_names_written_from_right_to_left_are_isolated():
    assert isolated("Ada") == "Ada"
    assert isolated("שרה לוי") == "\u2068שרה לוי\u2069"
    assert isolated("محمد") == "\u2068محمد\u2069"


def test_a_mark_in_a_session_without_a_photo_makes_nobody_else_absent(school, database):
    first = school()
    with database.connection() as connection:
        session = catalog.ensure_session(connection, read_key("s3"))
    DecisionService("ann").mark_attendance(session.id, student_id(first, "Cem"), "present", "saw her")
    review = school()
    assert [c.student_id for c in review.cells if c.session_id == session.id] == [student_id(review, "Cem")]
    assert "This session has no photo that can be used: there was none to judge by." in cell_of(review, "Cem", "s3").why
    register = AttendanceService(database, "dlib").register("m")
    assert register.attendance("s3") == {"Cem": "present"}
    assert "m,s3,,Cem,present,ann,saw her\n" in register.to_csv()


DATE = r"[\d-]{10}"


def why_face(review: Review, crop_id: int) -> str:
    return explain_face(review, review.faces()[crop_id])


def test_a_rejected_face_says_who_when_and_why_and_so_does_the_cell_of_whoever_is_absent(school, process_class):
    crop_id = school.crops["s2", 0, "Bob"]
    DecisionService("ann").reject(crop_id, student_id(school(), "Bob"), "that is his brother")
    said = rf"similarity to Bob, 0\.\d\d, would be enough, but ann said on {DATE} that this is not Bob: that is his brother\."
    for again in (False, True):
        if again:
            process_class("dlib")
        review = school()
        assert re.search(rf"Its {said}", why_face(review, crop_id))
        cell = cell_of(review, "Bob", "s2")
        assert cell.status == "absent"
        assert any(
            re.fullmatch(rf"(The best match was set aside\. )?Of face \d from the left in 0.jpg: its {said}", sentence)
            for sentence in cell.why
        )
        (rejection,) = review.faces()[crop_id].rejections
        assert rejection.similarity is not None
        assert rejection.similarity > review.threshold


def test_a_face_that_a_person_gave_to_somebody_else_is_told_in_the_cell_of_whom_it_was_taken_for(school):
    crop_id = school.crops["s2", 0, "Bob"]
    DecisionService("ann").assign(crop_id, student_id(school(), "Cem"), "he told me")
    why = cell_of(school(), "Bob", "s2").why
    assert any(
        re.fullmatch(
            rf"The best match was set aside\. Of face \d from the left in 0.jpg: it was taken for Bob at first, similarity 0\.\d\d\. ann said on {DATE} that this is Cem: "
            r"he told me\.",
            sentence,
        )
        for sentence in why
    )
    assert not any("at first" in sentence for sentence in cell_of(school(), "Cem", "s1").why)


def test_faces_of_a_decision_about_several_have_its_reason(school):
    ids = [school.crops["s1", photo, "Ada"] for photo in (0, 1)]
    decision = DecisionService("ann").assign_crops(ids, student_id(school(), "Ada"), "asked her").decision_id
    review = school()
    for crop_id in ids:
        assert why_face(review, crop_id).endswith("that this is Ada: asked her.")
        assert review.faces()[crop_id].decider.decision_id == decision, "which can be undone, unlike its parts"


def test_a_merged_group_says_who_merged_it_into_whom_when_and_why(school, process_class):
    first = school()
    unknown = next(s for s in first.students if s.kind == "unknown")
    merge = DecisionService("ann").merge(unknown.student_id, student_id(first, "Cem"), "cut his hair.")
    said = (
        rf"Its group of 3 faces, {unknown.label}, was merged into Cem by ann on {DATE}: cut his hair\."
        rf"|On {DATE} ann said that {unknown.label} and Cem are one person: cut his hair\."
    )
    for again in (False, True):
        if again:
            process_class("dlib")
        review = school()
        (cem,) = [s for s in review.students if s.name == "Cem"]
        (word,) = cem.history
        assert re.fullmatch(rf"On {DATE} ann said that {unknown.label} and Cem are one person: cut his hair\.", word)
        for crop_id in unknown.crop_ids:
            assert re.search(said, why_face(review, crop_id)) or "similarity to Cem" in why_face(review, crop_id)
        assert again or all("Its group of 3 faces" in why_face(review, crop_id) for crop_id in unknown.crop_ids)
        assert cell_of(review, "Cem", "s2").status == "present"
    DecisionService("bob").undo(merge.decision_id, "it is not him")
    (cem,) = [s for s in school().students if s.name == "Cem"]
    assert re.search(rf"bob took that back on {DATE}: it is not him\.$", cem.history[0])


def test_a_person_whom_somebody_has_named_says_who_gave_the_name(school, process_class):
    first = school()
    unknown = next(s for s in first.students if s.kind == "unknown")
    DecisionService("ann").rename(unknown.student_id, "Eve", "she told me")
    process_class("dlib")
    review = school()
    (named,) = [s for s in review.students if s.name == "Eve"]
    said = rf"On {DATE} ann gave {unknown.label} the name Eve: she told me\."
    assert [bool(re.fullmatch(said, word)) for word in named.history] == [True]
    by_group = [i for i in named.crop_ids if review.faces()[i].decider.by == "cluster"]
    assert all(re.search(said, why_face(review, crop_id)) for crop_id in by_group)
    assert [s.history for s in review.students if s.name == "Ada"] == [[]]


def test_splits_visitors_and_new_students_are_in_the_history_of_both(school):
    first, decide = school(), DecisionService("ann")
    decide.split([school.crops["s1", 1, "Ada"]], "Dan", "another one")
    unknown = next(s for s in first.students if s.kind == "unknown")
    decide.hide(unknown.student_id, "a guest")
    decide.unassign(school.crops["s2", 0, "Bob"])
    decide.create_student([school.crops["s2", 0, "Bob"]], "Fay", "new here")
    history = {s.name: s.history for s in school().students}
    assert history["Ada"] == history["Dan"]
    assert re.fullmatch(
        rf"On {DATE} ann said that one face of Ada shows somebody else, Dan: another one\.", *history["Dan"]
    )
    assert re.fullmatch(rf"On {DATE} ann said that {unknown.label} is a visitor: a guest\.", *history[unknown.name])
    assert re.fullmatch(
        rf"On {DATE} ann said that one face, until then nobody's, shows Fay: new here\.", *history["Fay"]
    )


def test_what_was_undone_is_told_where_it_had_counted(school):
    first, decide = school(), DecisionService("ann")
    crop_id, cem = school.crops["s1", 0, "Bob"], student_id(first, "Cem")
    assigned = decide.assign(crop_id, cem, "looks so").decision_id
    marked = decide.mark_attendance(first.sessions[1].session_id, cem, "excused", "ill").decision_id
    for decision in (assigned, marked):
        DecisionService("bob").undo(decision, "a mistake")
    review = school()
    undone = rf"bob took that back on {DATE}: a mistake\."
    assert re.search(rf"ann had said on {DATE} that this is Cem: looks so\. {undone}", why_face(review, crop_id))
    assert re.fullmatch(
        rf"ann had set on {DATE} “excused” by hand: ill\. {undone}", cell_of(review, "Cem", "s2").why[0]
    )


def test_a_question_says_that_its_best_match_was_set_aside(school, database):
    crops_, first = school.crops, school()
    ada, cem = student_id(first, "Ada"), student_id(first, "Cem")
    DecisionService("ann").reject(crops_["s1", 0, "Bob"], student_id(first, "Bob"), "a cousin")
    with database.connection() as connection:
        connection.execute(
            """UPDATE assignments SET state = 'needs_review', student_id = %s, cosine_similarity = 0.94, similarity = 0.6,
            runner_up_id = %s, runner_up_cosine_similarity = 0.938 WHERE crop_id = %s""",
            [ada, cem, crops_["s1", 0, "Bob"]],
        )
    (question,) = which(school())
    assert [c.student_id for c in question.candidates] == [ada, cem]
    (sentence,) = question.set_aside
    assert re.fullmatch(
        rf"The best match was set aside by a person. Its similarity to Bob, 0\.\d\d, would be enough, but ann said on {DATE} "
        r"that this is not Bob: a cousin\.",
        sentence,
    )
    assert [q.set_aside for q in school().questions if q.kind == "who"] == [[]]


def test_people_without_a_name_are_called_by_their_number_in_sentences(school):
    review = school()
    unknown = next(s for s in review.students if s.kind == "unknown")
    assert (unknown.label, unknown.first_seen) == (f"Unnamed person {unknown.student_id}", "s1")
    assert "Cluster" in unknown.name, "for commands"
    assert [s.label for s in review.students if s.kind == "student"] == ["Ada", "Bob", "Cem"]
    sentences = [w for cell in review.cells for w in cell.why]
    sentences += [explain_face(review, face) for face in review.faces().values()] + [q.text for q in review.questions]
    assert not any("Cluster_" in sentence for sentence in sentences)


def test_the_limit_says_where_it_comes_from(school, database):
    assert school().threshold_origin.startswith("Nobody has adjusted the limit to this class (attendansee calibrate m)")
    with database.connection() as connection:
        class_id = catalog.find_class(connection, "m")
        (calibration_id,) = connection.execute(
            """INSERT INTO calibrations (class_id, model, version, fpir, operating_distance, verification_distance, slope,
                false_positives, impostor_comparisons, true_positives, genuine_comparisons)
            VALUES (%s, 'dlib', 'v', 0.01, 0.05, 0.05, 50, 1, 100, 90, 100) RETURNING id""",
            [class_id],
        ).fetchone()
    for chosen, words in {
        calibration_id: rf"The limit was measured on this class's own confirmed faces \(calibration {calibration_id}\), .*",
        None: r"The limit is the one that the model has for all classes\.",
    }.items():
        with database.connection() as connection:
            calibrations.append_adoption(
                connection, class_id, "dlib", chosen, adopted_by="ann", reason="tried both", run_id=None
            )
        assert re.fullmatch(rf"{words} ann decided so on {DATE}: tried both\.", school().threshold_origin)


def number_of(review: Review, crop_id: int) -> int:
    return review.places[crop_id][1]


@pytest.mark.parametrize("aside", ["taken off", "no face", "given away"])
def test_the_nearest_face_is_not_called_the_most_alike_where_a_better_one_was_set_aside(school, database, aside):
    first = school()
    bob, cem = student_id(first, "Bob"), student_id(first, "Cem")
    # Two faces were taken for Cem and compared with him; the better one is then set aside.
    better, nearest = school.crops["s1", 0, "Bob"], school.crops["s1", 0, "Ada"]
    with database.connection() as connection:
        connection.execute(
            "UPDATE assignments SET student_id = %s, cosine_similarity = 0.98, similarity = 0.93, decided_by = 'knn', "
            "runner_up_id = NULL WHERE crop_id = %s",
            [cem, better],
        )
        connection.execute(
            "UPDATE assignments SET runner_up_id = %s, runner_up_cosine_similarity = 0.9 WHERE crop_id = %s",
            [cem, nearest],
        )
    ann = DecisionService("ann")
    if aside == "taken off":
        ann.unassign(better, "not him")
    elif aside == "no face":
        ann.not_a_face([better], "not him")
    else:
        ann.assign(better, bob, "not him")
    review = school()
    cell = cell_of(review, "Cem", "s1")
    assert (cell.status, cell.nearest_id) == ("absent", nearest)
    word = {"taken off": "this is to have no name", "no face": "this is no face", "given away": "this is Bob"}[aside]
    assert any(
        re.fullmatch(
            rf"The best match was set aside\. Of face {number_of(review, better)} from the left in 0\.jpg: it was taken for "
            rf"Cem at first, similarity 0\.93\. ann said on {DATE} that {word}: not him\.",
            sentence,
        )
        for sentence in cell.why
    ), cell.why
    assert not any(sentence.startswith("Most like Cem") for sentence in cell.why)
    (left,) = [sentence for sentence in cell.why if sentence.startswith("Of the faces of which")]
    assert left.startswith(
        "Of the faces of which nobody has said who they are, most like Cem, as far as figures are kept, is face "
        f"{number_of(review, nearest)} from the left in 0.jpg: similarity "
    )


@pytest.mark.parametrize("word", ["unassign", "not_a_face", "assign"])
def test_what_a_run_found_is_told_after_later_runs_too(school, process_class, word):
    first, ann, crop_id = school(), DecisionService("ann"), school.crops["s2", 0, "Bob"]
    if word == "assign":
        ann.assign(crop_id, student_id(first, "Cem"))
    elif word == "unassign":
        ann.unassign(crop_id)
    else:
        ann.not_a_face([crop_id])
    for again in (False, True):
        if again:
            process_class("dlib")
        why = cell_of(school(), "Bob", "s2").why
        assert any("it was taken for Bob at first, similarity 0." in w for w in why), (again, why)


def test_a_face_that_was_rejected_is_the_best_match_that_was_set_aside(school):
    first = school()
    DecisionService("ann").reject(school.crops["s2", 0, "Bob"], student_id(first, "Bob"))
    why = cell_of(school(), "Bob", "s2").why
    assert any(
        w.startswith("The best match was set aside. Of face 1 from the left in 0.jpg: its similarity to Bob, 0.")
        for w in why
    )
    assert not any(w.startswith("Most like Bob") for w in why)


def test_an_obstacle_is_told_of_the_face_that_was_spoken_of(school, database):
    first = school()
    unknown, faces = eve(first), [crop_id for place, crop_id in school.crops.items() if place[2] == "Eve"]
    portrait = {s.name: s.portrait_ids[0] for s in first.students if s.portrait_ids}
    looks_like(database, faces, portrait["Cem"])
    DecisionService("ann").reject(school.crops["s1", 1, "Eve"], student_id(first, "Cem"), "that is his sister")
    review = school()
    number = number_of(review, school.crops["s1", 1, "Eve"])
    said = (
        rf"but of face {number} from the left in 1\.jpg of s1 ann said on {DATE} that this is not Cem: that is his sister; "
        r"2 other faces of this person belong with it\."
    )
    for session in ("s1", "s2"):
        assert any(re.fullmatch(rf"Cem is alike enough, .*, {said}", w) for w in cell_of(review, unknown, session).why)
    # Who looks up why Cem is absent where another face of the person is learns of it, too.
    assert any(
        re.fullmatch(rf"The unknown person {called(review, unknown)} is alike enough to Cem, .*, {said}", w)
        for w in cell_of(review, "Cem", "s2").why
    )
    (who,) = [q for q in review.questions if q.kind == "who"]
    (sentence,) = who.set_aside
    assert f"Of face {number} from the left in 1.jpg of s1: its similarity to Cem" in sentence


def test_the_photo_that_shows_a_student_beside_an_unknown_person_is_named(school, database):
    first = school()
    faces = [crop_id for place, crop_id in school.crops.items() if place[2] == "Eve"]
    portrait = {s.name: s.portrait_ids[0] for s in first.students if s.portrait_ids}
    looks_like(database, faces, portrait["Bob"])
    why = cell_of(school(), eve(first), "s2").why
    assert any(
        w.startswith("Bob is alike enough") and "but 0.jpg of s1 shows Bob beside this person." in w for w in why
    )


def test_a_cell_that_an_applied_plan_has_changed_names_it(school, database):
    first = school()
    ada, bob = student_id(first, "Ada"), student_id(first, "Bob")
    moved = school.crops["s2", 0, "Bob"]
    # A wrong run: the plan puts it right.
    with database.connection() as connection:
        connection.execute("UPDATE assignments SET student_id = %s WHERE crop_id = %s", [ada, moved])
    AttendanceService(database, "dlib").register_session(read_key("s2"))
    service = ReclusteringService()
    plan = service.plan("m", "dlib", ReclusteringConfig())
    assert not any("reclustering plan" in w for cell in school().cells for w in cell.why), "nobody has applied it"
    service.apply(plan.plan_id, "ann", "after the holidays")
    DecisionService("ann").rename(ada, "Ada Lee")
    review = school()
    applied = rf"ann applied reclustering plan {plan.plan_id} on {DATE}"
    absent, present = cell_of(review, "Ada Lee", "s2"), cell_of(review, "Bob", "s2")
    assert (absent.status, present.status) == ("absent", "present")
    for cell, before in ((absent, "present"), (present, "absent")):
        assert any(
            re.fullmatch(rf"{applied}, which made this “{cell.status}” from “{before}”: after the holidays\.", w)
            for w in cell.why
        ), cell.why
    moved_words = rf"{applied}, which took this face from Ada Lee and gave it to Bob: after the holidays\."
    assert any(re.fullmatch(rf"Of face 1 from the left in 0\.jpg: {moved_words}", w) for w in absent.why), absent.why
    assert re.search(moved_words, why_face(review, moved))
    assert student_id(review, "Bob") == bob
    assert not any("reclustering plan" in w for w in cell_of(review, "Cem", "s2").why)


def test_without_a_photo_nothing_is_said_of_what_photos_say(school, database):
    first = school()
    with database.connection() as connection:
        session = catalog.ensure_session(connection, read_key("s3"))
    DecisionService("ann").mark_attendance(session.id, student_id(first, "Cem"), "absent")
    review = school()
    cell = cell_of(review, "Cem", "s3")
    assert cell.by_photos is None
    assert "This session has no photo that can be used: there was none to judge by." in cell.why
    assert not any("The photos alone" in w for w in cell.why)


def test_photos_that_no_run_has_judged_say_nothing(school, embedded_class):
    first = school()
    embedded_class.session("m__s3", [["Ada"]])
    session_id = next(s.session_id for s in school().sessions if s.name == "s3")
    DecisionService("ann").mark_attendance(session_id, student_id(first, "Ada"), "excused")
    cell = cell_of(school(), "Ada", "s3")
    assert cell.by_photos is None
    assert "No run has judged this session's photos yet." in cell.why
    assert not any("The photos alone" in w or "is taken for" in w for w in cell.why)


def test_a_student_who_was_made_after_the_run_is_not_said_to_have_been_compared(school):
    first = school()
    DecisionService("ann").split([school.crops["s1", 1, "Ada"]], "Dan")
    why = cell_of(school(), "Dan", "s2").why
    assert not any("none has Dan" in w for w in why)
    assert any(
        re.fullmatch(
            rf"2 faces that were compared with the known faces show whom they did before any face that is Dan's now became so, "
            rf"on {DATE}: no figure with Dan is kept\.",
            w,
        )
        for w in why
    ), why
    assert any("none has Ada" in w or "Most like Ada" in w for w in cell_of(first, "Ada", "s2").why)


def test_a_student_whose_faces_were_all_taken_away_says_by_whom(school, database):
    first, ann = school(), DecisionService("ann")
    bob = student_id(first, "Bob")
    portrait = next(s.portrait_ids[0] for s in first.students if s.name == "Bob")
    with database.connection() as connection:
        students.add_student(connection, catalog.find_class(connection, "m"), "Zoe", "17", None)
    ann.unassign(school.crops["s1", 0, "Bob"], "blurred")
    ann.reject(school.crops["s2", 0, "Bob"], bob)
    ann.unassign(portrait, "a brother's")
    for session in ("s1", "s2"):
        AttendanceService(database, "dlib").register_session(read_key(session))
    with database.connection() as connection:  # or the register would leave Bob out
        connection.execute("UPDATE students SET student_number = '18' WHERE id = %s", [bob])
    AttendanceService(database, "dlib").register_session(read_key("s2"))
    review = school()
    why = cell_of(review, "Bob", "s2").why
    assert not any("is known yet" in w for w in why)
    (none,) = [w for w in why if w.startswith("No face of Bob is known now")]
    assert "add a portrait or name a face" in none
    taken = [w for w in why if "was taken for Bob at first" in w]
    assert any("in 0.jpg of s1" in w and "that this is to have no name: blurred." in w for w in taken), why
    assert any("this is not Bob" in w for w in why)
    assert any("No face of Zoe is known yet" in w for w in cell_of(review, "Zoe", "s1").why)


def test_every_word_that_was_taken_back_is_counted_and_the_last_are_told(school):
    first, crop_id = school(), school.crops["s1", 0, "Bob"]
    cem, session_id = student_id(first, "Cem"), first.sessions[1].session_id
    ann, bob = DecisionService("ann"), DecisionService("bob")
    for reason in ("one", "two", "three", "four", "five"):
        bob.undo(ann.assign(crop_id, cem, reason).decision_id)
        bob.undo(ann.mark_attendance(session_id, cem, "excused", reason).decision_id)
    for confirmed in (False, True):
        if confirmed:
            ann.assign(crop_id, student_id(first, "Bob"), "asked him")
        review = school()
        for text in (why_face(review, crop_id), " ".join(cell_of(review, "Cem", "s2").why)):
            assert "2 earlier words" in text
            assert "were taken back too" in text
            assert [reason for reason in ("one", "two", "three", "four", "five") if f": {reason}." in text] == [
                *("three", "four", "five")
            ]
            assert text.index(": three.") < text.index(": five.")
    assert "that this is Bob: asked him." in why_face(review, crop_id)


def test_an_earlier_mark_of_a_cell_is_told(school):
    first = school()
    cem, session_id = student_id(first, "Cem"), first.sessions[1].session_id
    DecisionService("ann").mark_attendance(session_id, cem, "excused", "ill")
    DecisionService("bob").mark_attendance(session_id, cem, None, "was a mistake")
    cell = cell_of(school(), "Cem", "s2")
    assert cell.mark is None
    assert re.fullmatch(rf"ann set “excused” by hand on {DATE}: ill\.", cell.why[0])
    assert re.fullmatch(rf"bob said on {DATE} that the photos count: was a mistake\.", cell.why[1])
    DecisionService("cem").mark_attendance(session_id, cem, "present")
    why = cell_of(school(), "Cem", "s2").why
    assert re.match(rf"cem set “present” by hand on {DATE}; nothing automatic changes that\. ", why[0])
    assert re.fullmatch(rf"Before that ann set “excused” by hand on {DATE}: ill\.", why[1])
    assert re.fullmatch(rf"Before that bob said on {DATE} that the photos count: was a mistake\.", why[2])


def test_taking_a_name_off_a_face_is_called_the_same_everywhere(school, database):
    first, crop_id = school(), school.crops["s2", 0, "Bob"]
    taken = DecisionService("ann").unassign(crop_id).decision_id
    review = school()
    assert "that this is to have no name." in why_face(review, crop_id)
    assert any("that this is to have no name." in w for w in cell_of(review, "Bob", "s2").why)
    with database.connection() as connection:
        log = read_decisions(connection, first.class_id)
    assert log.results[0].sentence == f"Face {crop_id} is to have no name."
    DecisionService("bob").undo(taken)
    assert "that this is to have no name." in why_face(school(), crop_id)


def test_an_undo_that_a_swap_of_names_stands_against_names_the_decision_that_gave_the_name_away(school):
    first, decide = school(), DecisionService("ann")
    ada, bob = student_id(first, "Ada"), student_id(first, "Bob")
    decide.rename(ada, "Somebody")
    second = decide.rename(bob, "Ada")
    third = decide.rename(ada, "Bob")
    with pytest.raises(ConflictError) as refused:
        decide.undo(second.decision_id)
    assert str(refused.value) == (
        f"Two students would be called 'Bob' (students {ada} and {bob}): decision {third.decision_id} has given the name to "
        f"student {ada}. Undo decision {third.decision_id} first, or rename student {ada}."
    )
    decide.undo(third.decision_id)
    decide.undo(second.decision_id)
    assert student_id(school(), "Bob") == bob


def test_an_undo_that_somebody_new_stands_against_names_whom_to_rename(school, database):
    first, decide = school(), DecisionService("ann")
    ada = student_id(first, "Ada")
    renamed = decide.rename(ada, "Somebody")
    with database.connection() as connection:
        new = students.add_student(connection, catalog.find_class(connection, "m"), "Ada", "17", None)
    with pytest.raises(ConflictError, match=rf"student {new} has the name now\. Rename student {new} first\.$"):
        decide.undo(renamed.decision_id)
