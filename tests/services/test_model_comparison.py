"""Two lineages of a class side by side: coverage, disagreements, what people have said; made vectors, real database."""

import csv
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.database import catalog, lineages
from pipelines.errors import AttendanseeError, ConflictError, ModelError
from pipelines.resources.embedding.registry import get_spec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.services.attendance import AttendanceService, Register
from pipelines.services.decisions import DecisionService
from pipelines.services.model_comparison import (
    COLUMNS,
    Answer,
    ModelComparison,
    attendance_changes,
    compare_answers,
    compare_models,
    confirmed_answers,
    contradicted,
)
from pipelines.settings import get_settings


@pytest.fixture
def compare(database, facenet):
    def run(class_name: str = "m", model: str = "facenet") -> ModelComparison:
        return compare_models(database, EmbeddingModels.from_settings(get_settings()), class_name, model)

    return run


@pytest.fixture
def teacher(database) -> DecisionService:
    return DecisionService("a teacher")


def test_lineages_with_the_same_people_agree_about_everything(embedded_class, facenet, process_class, compare):
    embedded_class.enrol("m", "ann", "bob")
    first = embedded_class.session("m__1", [["ann", "cem"], ["bob"]])
    second = embedded_class.session("m__2", [["ann"]])
    process_class("dlib", "m")
    facenet(embedded_class.everyone)
    process_class("facenet", "m")
    found = compare()
    assert (found.old.model, found.new.model) == ("dlib", "facenet")
    assert (found.sessions, found.old.sessions_covered, found.new.sessions_covered) == (2, 2, 2)
    assert (found.crops, found.old.crops_embedded, found.new.crops_embedded) == (6, 6, 6)
    # Six faces: two portraits are confirmed, and each model finds them in the photos.
    assert len(first) + len(second) + 2 == found.crops_compared == found.crops_agreed == 6
    assert (found.agreement, found.contradictions, found.disagreements) == (1.0, 0, [])
    assert (found.attendance_cells, found.attendance_changes) == (5, [])
    for lineage, distance in ((found.old, 0.065), (found.new, 0.40)):
        assert lineage.lacking == {}
        assert lineage.thresholds.assignment_distance == distance
        assert lineage.confirmed.same_student == 2


def test_every_disagreement_is_listed_with_both_answers(embedded_class, facenet, process_class, compare, identities_of):
    embedded_class.enrol("m", "ann", "bob")
    made = embedded_class.session("m__1", [["ann", "cem"], ["bob"]])
    process_class("dlib", "m")
    facenet(embedded_class.everyone)
    # To facenet the face of bob is ann's, and cem's is ann's too, in a photo that shows her already.
    facenet({(0, "ann"): made[0, "ann"], (1, "ann"): made[1, "bob"]}, distance=0.001)
    facenet({(0, "ann"): made[0, "cem"]}, distance=0.05)
    process_class("facenet", "m")
    found = compare()
    portrait = next(crop_id for (crop_id, person) in embedded_class.everyone if person == "bob")
    assert [(d.face_crop_id, d.session, d.confirmed, d.contradicts) for d in found.disagreements] == [
        (made[0, "cem"], "1", None, False),
        (made[1, "bob"], "1", None, False),
        # The other way round too: to facenet no other face looks like bob's portrait.
        (portrait, "enrol", "bob", False),
    ]
    cem, bob, of_portrait = found.disagreements
    assert (of_portrait.old.student, of_portrait.new.state) == ("bob", "no_match")
    assert (cem.old.state, cem.old.student) == ("assigned", identities_of(made)[0, "cem"])
    assert (cem.new.state, cem.new.student) == ("needs_review", "ann")
    assert (bob.old.student, bob.new.student) == ("bob", "ann")
    assert 0.5 < bob.old.confidence < 1
    assert 0.5 < bob.new.confidence < 1
    assert (found.crops_compared, found.crops_agreed) == (5, 2)
    guest = identities_of(made)[0, "cem"]
    assert [(c.session, c.student, c.old, c.new) for c in found.attendance_changes] == [
        ("1", guest, "unknown", ""),
        ("1", "bob", "present", "absent"),
    ]

    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert list(rows[0]) == list(COLUMNS)
    assert [(row["what"], row["face_crop_id"], row["old_student"], row["new_student"]) for row in rows] == [
        ("face", str(made[0, "cem"]), guest, "ann"),
        ("face", str(made[1, "bob"]), "bob", "ann"),
        ("face", str(portrait), "bob", ""),
        ("attendance", "", "", ""),
        ("attendance", "", "", ""),
    ]
    assert ModelComparison.model_validate_json(found.model_dump_json()) == found


def test_a_session_that_the_new_lineage_lacks_is_named_and_its_faces_are_not_compared(
    embedded_class, facenet, process_class, compare
):
    embedded_class.enrol("m", "ann")
    first = embedded_class.session("m__1", [["ann"]])
    embedded_class.session("m__2", [["ann", "bob"]])
    process_class("dlib", "m")
    facenet(first)
    found = compare()
    assert (found.new.sessions_covered, found.new.crops_embedded, found.crops) == (0, 1, 4)
    assert found.new.lacking == {
        "1": "it was never processed",
        "2": "2 of 2 faces have no vector",
        "enrol": "1 of 1 faces have no vector",
    }
    assert (found.crops_compared, found.agreement) == (0, None)
    assert found.new.confirmed.not_embedded == 1
    assert {(c.old, c.new) for c in found.attendance_changes} == {("present", ""), ("unknown", "")}


def test_a_confirmed_face_is_asked_without_the_confirmation(embedded_class, facenet, process_class, compare, teacher):
    students = embedded_class.enrol("m", "ann", "bob")
    made = embedded_class.session("m__1", [["ann"], ["bob"], ["cem"]])
    process_class("dlib", "m")
    teacher.assign(made[0, "ann"], students["ann"])
    teacher.assign(made[1, "bob"], students["ann"])  # against what both models see
    teacher.assign(made[2, "cem"], students["bob"])  # whom neither model knows
    facenet(embedded_class.everyone)
    process_class("facenet", "m")
    found = compare()
    for lineage in (found.old, found.new):
        confirmed = lineage.confirmed
        # The face that the teacher took for ann and bob's portrait, which are most alike, contradict each other.
        assert (confirmed.same_student, confirmed.other_student) == (2, 2)
        assert (confirmed.nobody, confirmed.needs_review, confirmed.not_embedded) == (1, 0, 0)
    wrong = next(d for d in found.disagreements if d.face_crop_id == made[1, "bob"])
    assert (wrong.confirmed, wrong.old.student, wrong.new.student, wrong.contradicts) == ("ann", "bob", "bob", True)
    assert found.contradictions == 2


def test_what_a_session_was_given_automatically_says_nothing_about_its_own_faces(
    embedded_class, facenet, process_class, compare, teacher
):
    students = embedded_class.enrol("m", "bob")
    made = embedded_class.session("m__1", [["ann"], ["ann"]])
    process_class("dlib")
    facenet(embedded_class.everyone)
    process_class("facenet")
    # The other photo's face still is the unknown person that both were.
    teacher.assign(made[0, "ann"], students["bob"])
    found = compare()
    for lineage in (found.old, found.new):
        assert (lineage.confirmed.nobody, lineage.confirmed.other_student) == (2, 0)


def test_what_a_person_has_taken_off_is_nobodys_opinion(embedded_class, facenet, process_class, compare, teacher):
    embedded_class.enrol("m", "ann")
    made = embedded_class.session("m__1", [["ann"], ["bob"]])
    process_class("dlib", "m")
    facenet(embedded_class.everyone)
    process_class("facenet", "m")
    assert compare().crops_compared == 3
    teacher.unassign(made[1, "bob"])
    assert compare().crops_compared == 2


def test_a_rejected_student_and_one_whom_the_photo_shows_already_are_not_what_the_model_says(
    embedded_class, facenet, process_class, compare, teacher, database
):
    students = embedded_class.enrol("m", "ann", "bob", "cem")
    made = embedded_class.session("m__1", [["bob", "bob2"], ["cem"]])
    facenet(embedded_class.everyone)
    # Both faces of the first photo look like bob; the teacher says that the second is ann.
    facenet({(0, "bob"): made[0, "bob2"]})
    process_class("dlib", "m")
    teacher.assign(made[0, "bob"], students["bob"])
    teacher.assign(made[0, "bob2"], students["ann"])
    teacher.reject(made[1, "cem"], students["cem"])
    teacher.assign(made[1, "cem"], students["ann"])
    process_class("facenet", "m")
    found = compare()
    assert not {d.face_crop_id for d in found.disagreements if d.contradicts} & {made[0, "bob2"], made[1, "cem"]}
    with database.connection() as connection:
        class_id = catalog.find_class(connection, "m")
        places = lineages.read_places(connection, class_id)
        answers = confirmed_answers(connection, class_id, get_spec("facenet"), found.new.version, places)
    second, cem = answers[made[0, "bob2"]], answers[made[1, "cem"]]
    assert (second.state, second.student_id) == ("needs_review", students["bob"])
    assert cem.state == "no_match"


def test_no_vector_and_no_picture_is_in_a_comparison(embedded_class, facenet, process_class, compare):
    embedded_class.enrol("m", "ann")
    embedded_class.session("m__1", [["ann", "bob"]])
    process_class("dlib", "m")
    facenet(embedded_class.everyone, distance=0.9)
    process_class("facenet", "m")
    found = compare()
    assert found.disagreements
    for text in (found.model_dump_json(), found.to_csv()):
        assert not re.search(r"(-?\d*\.\d+(e-?\d+)?[,\s\]]+){8}", text)
        assert "base64" not in text


@pytest.mark.parametrize(
    ("class_name", "model", "error", "words"),
    [
        ("m", "dlib", ConflictError, "dlib is the active model of m: name another one."),
        ("m", "eigenfaces", ModelError, "eigenfaces"),
        ("nowhere", "facenet", AttendanseeError, "There is no class 'nowhere'"),
        ("n", "facenet", ConflictError, "No model has processed the class n yet"),
    ],
)
def test_what_cannot_be_compared_is_refused(embedded_class, process_class, compare, class_name, model, error, words):
    embedded_class.session("m__1", [["ann"]])
    process_class("dlib", "m")
    embedded_class.session("n__1", [["ann"]])
    with pytest.raises(error, match=re.escape(words)):
        compare(class_name, model)


ANSWERS = st.dictionaries(
    st.integers(1, 8),
    st.one_of(
        st.just(Answer("no_match")),
        st.builds(Answer, st.sampled_from(["assigned", "needs_review"]), st.integers(1, 3), st.floats(0, 1)),
    ),
)


@given(ANSWERS, ANSWERS, st.dictionaries(st.integers(1, 8), st.integers(1, 3)))
def test_the_crops_of_both_agree_or_differ_and_confidence_does_not_matter(old, new, confirmed):
    found = compare_answers(old, new, confirmed)
    assert found.both == len(old.keys() & new.keys()) == found.agreed + len(found.differing)
    assert compare_answers(new, old, confirmed).differing == found.differing
    assert compare_answers(old, old, confirmed).differing == set()
    doubled = {crop: Answer(a.state, a.student_id, None) for crop, a in new.items()}
    assert compare_answers(old, doubled, confirmed) == found


@given(ANSWERS, st.dictionaries(st.integers(1, 8), st.integers(1, 3)))
def test_only_another_student_contradicts_a_person(answers, confirmed):
    found = contradicted(answers, confirmed)
    assert found <= confirmed.keys() & answers.keys()
    for crop_id in confirmed.keys() & answers.keys():
        answer = answers[crop_id]
        said_other = answer.state == "assigned" and answer.student_id != confirmed[crop_id]
        assert (crop_id in found) == said_other


CELLS = st.dictionaries(
    st.tuples(st.sampled_from(["Ann", "Bob"]), st.sampled_from(["2", "1"])), st.sampled_from(["present", "absent"])
)


@given(CELLS, CELLS)
def test_the_cells_that_change_lead_from_one_register_to_the_other(old, new):
    def register(cells):
        return Register("m", "dlib", ["2", "1"], {"2": None, "1": None}, ["Ann", "Bob"], [], cells)

    changes, cells = attendance_changes(register(old), register(new))
    assert cells == len(old.keys() | new.keys())
    applied = {**old, **{(c.student, c.session): c.new for c in changes}}
    assert {cell: status for cell, status in applied.items() if status} == new
    assert all(old.get((c.student, c.session), "") == c.old != c.new for c in changes)
    assert [c.session for c in changes] == sorted([c.session for c in changes], key=["2", "1"].index)


def test_the_json_is_what_the_asset_and_the_command_give(embedded_class, facenet, process_class, compare, database):
    embedded_class.enrol("m", "ann")
    embedded_class.session("m__1", [["ann"]])
    process_class("dlib", "m")
    facenet(embedded_class.everyone)
    process_class("facenet", "m")
    found = json.loads(compare().model_dump_json())
    assert found["old"]["model"] == "dlib"
    assert found["new"]["thresholds"]["review_margin"] == 0.04
    assert AttendanceService(database, "facenet").register("m").cells == {("ann", "1"): "present"}
