"""Deciding about people instead of crops, on made vectors in a real database."""

import numpy as np
import pytest

from pipelines.database import catalog, clusters, crops
from pipelines.database.clusters import Scope
from pipelines.partitions import parse_session_key
from pipelines.services.decisions import DecisionService
from pipelines.services.session_assignment import AssignmentConfig, AssignmentReport, SessionAssignmentService
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService


@pytest.fixture
def process(database):
    """Cluster and assign a session, as the assets do; or assign it by the clusters that are given."""

    def run(key: str, config: AssignmentConfig | None = None, labels: dict[int, int] | None = None) -> AssignmentReport:
        parsed = parse_session_key(key)
        if labels is None:
            SessionClusteringService(database, "dlib", "v").cluster_session(parsed, ClusteringConfig())
        else:
            with database.connection() as connection:
                session = catalog.find_session(connection, parsed)
                clusters.write_clusters(connection, Scope(session.class_id, session.id), "dlib", labels)
        return SessionAssignmentService(database, "dlib", "v").assign_session(parsed, config or AssignmentConfig())

    return run


@pytest.fixture
def stored(database):
    """Reads (state, name, decided_by, cosine_similarity, runner-up's name) of each crop."""

    def read(made: dict[tuple[int, str], int]) -> dict[tuple[int, str], tuple]:
        with database.connection() as connection:
            rows = connection.execute(
                """SELECT a.crop_id, a.state, st.name, a.decided_by, a.cosine_similarity, r.name FROM assignments a
                LEFT JOIN students st ON st.id = a.student_id LEFT JOIN students r ON r.id = a.runner_up_id"""
            ).fetchall()
        of_crop = {crop_id: tuple(rest) for crop_id, *rest in rows}
        return {place: of_crop[crop_id] for place, crop_id in made.items()}

    return read


def make_unusable(database, crop_id: int) -> None:
    with database.connection() as connection:
        crops.set_unusable_reasons(connection, crop_id, ["blurred"])


def set_vector(database, crop_id: int, vector: np.ndarray) -> None:
    with database.connection() as connection:
        unit = vector / np.linalg.norm(vector)
        connection.execute(
            "UPDATE embeddings_dlib SET embedding = %s::vector WHERE crop_id = %s", [str(unit.tolist()), crop_id]
        )


def vector_of(database, crop_id: int) -> np.ndarray:
    with database.connection() as connection:
        return crops.read_embeddings(connection, "dlib", "v", [crop_id], 128)[1][0]


def hide(database, name: str) -> None:
    with database.connection() as connection:
        assert connection.execute("UPDATE students SET hidden = true WHERE name = %s", [name]).rowcount == 1


def test_faces_too_far_from_the_portrait_one_by_one_are_near_enough_together(made_class, process, stored):
    made_class.enrol("m", "ann", "bob")
    together = made_class.session("m__1", [["ann"], ["ann"]], distance=0.028)
    alone = made_class.session("m__2", [["ann"]], distance=0.028)
    config = AssignmentConfig(distance_threshold=0.037)
    process("m__1", config)
    process("m__2", config)
    one, other = stored(together).values()
    assert one[:3] == other[:3] == ("assigned", "ann", "knn")
    # The evidence is that of the person.
    assert one[3:] == other[3:]
    assert one[4] == "bob"
    assert stored(alone)[0, "ann"][1] != "ann"


def test_a_good_face_counts_more_than_a_poor_one(made_class, database, process, stored):
    made_class.enrol("m", "ann")
    (portrait,) = made_class.everyone.values()
    made = made_class.session("m__1", [["ann"], ["ann"]], distance=0.02)
    good, poor = made.values()
    with database.connection() as connection:
        connection.execute("UPDATE face_crops SET sharpness = 0.03 WHERE id = %s", [poor])
    process("m__1")
    # A tenth of the sharpness at which a face counts in full.
    person = vector_of(database, good) + 0.1 * vector_of(database, poor)
    similarity = person @ vector_of(database, portrait) / np.linalg.norm(person)
    assert [row[3] for row in stored(made).values()] == pytest.approx([similarity] * 2, abs=1e-5)


def test_a_poor_face_goes_with_the_person_it_clearly_belongs_to(made_class, database, process, stored):
    made = made_class.session("m__1", [["ann", "bob"], ["ann", "cem"]])
    for person in ("ann", "cem"):
        make_unusable(database, made[1, person])
    assert process("m__1").students_created == 2
    names = {place: row[1] for place, row in stored(made).items()}
    assert names[1, "ann"] == names[0, "ann"]
    assert names[0, "bob"] not in {None, names[0, "ann"]}
    assert names[1, "cem"] is None
    assert process("m__1").changed == 0


def test_poor_faces_that_join_do_not_decide_whose_group_it_is(made_class, database, process, stored):
    made = made_class.session("m__1", [["ann"]])
    process("m__1")
    name = stored(made)[0, "ann"][1]
    with database.connection() as connection:
        connection.execute("UPDATE students SET name = 'Ann', provisional = false WHERE name = %s", [name])
    more = made_class.session("m__1", [[], ["ann"], ["ann"], ["ann"]])
    for crop_id in more.values():
        make_unusable(database, crop_id)
    assert process("m__1").students_created == 0
    assert {row[1] for row in stored(made | more).values()} == {"Ann"}


def test_two_groups_of_a_session_may_be_one_student_in_different_photos(made_class, process, stored):
    made_class.enrol("m", "ann")
    made = made_class.session("m__1", [["ann"], ["ann"]])
    process("m__1", labels={made[0, "ann"]: 0, made[1, "ann"]: 1})
    assert {row[:2] for row in stored(made).values()} == {("assigned", "ann")}


def test_two_groups_that_a_photo_shows_both_are_not_one_student(made_class, database, process, stored):
    made_class.enrol("m", "ann")
    made = made_class.session("m__1", [["ann", "poster"], ["ann"], ["poster"]])
    for place in ((0, "poster"), (2, "poster")):
        set_vector(database, made[place], vector_of(database, made[0, "ann"]) + 0.1 * vector_of(database, made[place]))
    process("m__1", labels={crop_id: int(person == "poster") for (_, person), crop_id in made.items()})
    states = {place: row[:2] for place, row in stored(made).items()}
    winner = "ann" if states[0, "ann"][0] == "assigned" else "poster"
    for (photo, person), state in states.items():
        assert state == ("assigned" if person == winner else "needs_review", "ann"), (photo, person)


def test_a_person_between_two_students_is_one_question(made_class, database, process, stored):
    made_class.enrol("m", "ann", "bob")
    portraits = {name: crop_id for (_, name), crop_id in made_class.everyone.items()}
    made = made_class.session("m__1", [["doubt"], ["doubt"]])
    between = vector_of(database, portraits["ann"]) + vector_of(database, portraits["bob"])
    for crop_id in made.values():
        set_vector(database, crop_id, between)
    report = process("m__1", AssignmentConfig(distance_threshold=0.4))
    assert (report.needs_review, report.students_created) == (2, 0)
    one, other = stored(made).values()
    assert one == other
    assert {one[1], one[4]} == {"ann", "bob"}


def test_what_one_crop_does_not_show_is_no_evidence_against_the_others(made_class, database, process, stored):
    students = made_class.enrol("m", "ann")
    made = made_class.session("m__1", [["ann"], ["ann"], ["ann"]])
    with database.connection() as connection:
        class_id = catalog.find_class(connection, "m")
        connection.execute(
            """INSERT INTO decisions (class_id, kind, crop_id, student_id, decided_by)
            VALUES (%s, 'not_this_student', %s, %s, 'a teacher')""",
            [class_id, made[1, "ann"], students["ann"]],
        )
    process("m__1")
    names = {place: row[1] for place, row in stored(made).items()}
    assert names[0, "ann"] == names[2, "ann"] == "ann"
    assert names[1, "ann"] != "ann"
    assert process("m__1").changed == 0


def test_a_visitor_takes_their_own_face_in_every_session(made_class, database, process, stored):
    made_class.enrol("m", "ann")
    first = made_class.session("m__1", [["ann", "guest"]])
    process("m__1")
    visitor = stored(first)[0, "guest"][1]
    hide(database, visitor)
    second = made_class.session("m__2", [["ann", "guest"], ["guest", "new"]])
    assert process("m__2").students_created == 1
    rows = stored(second)
    assert rows[0, "ann"][:2] == ("assigned", "ann")
    assert rows[0, "guest"][:2] == rows[1, "guest"][:2] == ("assigned", visitor)
    for key in ("m__1", "m__2"):
        assert process(key).changed == 0


def test_a_face_is_not_lost_to_a_visitor_who_is_hardly_nearer_than_a_student(made_class, database, process, stored):
    made_class.enrol("m", "ann")
    first = made_class.session("m__1", [["guest"]])
    process("m__1")
    visitor = stored(first)[0, "guest"][1]
    hide(database, visitor)
    portrait = next(crop_id for (_, name), crop_id in made_class.everyone.items() if name == "ann")
    second = made_class.session("m__2", [["doubt"]])
    between = vector_of(database, portrait) + 1.01 * vector_of(database, first[0, "guest"])
    set_vector(database, second[0, "doubt"], between)
    process("m__2", AssignmentConfig(distance_threshold=0.4))
    state, name, _, similarity, runner_up = stored(second)[0, "doubt"]
    assert (state, name, runner_up) == ("needs_review", "ann", visitor)
    assert 0.6 < similarity < 0.8


def test_a_student_known_from_automatic_crops_alone_is_asked_before_a_visitor(made_class, database, process, stored):
    """The visitor is asked beside those with portraits, and must not take the face before the others were asked."""
    made_class.enrol("m", "bob")
    first = made_class.session("m__1", [["ann", "guest"]])
    process("m__1")
    names = {person: row[1] for (_, person), row in stored(first).items()}
    hide(database, names["guest"])
    with database.connection() as connection:
        connection.execute("UPDATE students SET name = 'Ann', provisional = false WHERE name = %s", [names["ann"]])
    second = made_class.session("m__2", [["ann"]])
    like_both = 1.2 * vector_of(database, first[0, "ann"]) + vector_of(database, first[0, "guest"])
    set_vector(database, second[0, "ann"], like_both)
    process("m__2", AssignmentConfig(distance_threshold=0.4))
    assert stored(second)[0, "ann"][:2] == ("assigned", "Ann")


def test_nobody_near_enough_is_told_the_nearest_of_all_who_were_asked(made_class, process, stored):
    made_class.enrol("m", "ann")
    made_class.session("m__0", [["bob"]])
    process("m__0")
    made = made_class.session("m__1", [["guest"]], unusable=frozenset({"guest"}))
    process("m__1")
    state, name, _, similarity, runner_up = stored(made)[0, "guest"]
    assert (state, name, similarity) == ("no_match", None, None)
    assert runner_up is not None


def test_a_rejected_student_does_not_come_back_with_a_poor_face_of_the_same_person(made_class, database, process):
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann"], ["ann"], ["ann"]], distance=0.01)
    make_unusable(database, made[0, "ann"])
    process("m__enrol")
    process("m__1")
    for number in (1, 2):
        DecisionService("a teacher").reject(made[number, "ann"], ids["ann"])
    process("m__1")
    with database.connection() as connection:
        given = connection.execute("SELECT crop_id FROM assignments JOIN rejected_students USING (crop_id, student_id)")
        assert given.fetchall() == []
