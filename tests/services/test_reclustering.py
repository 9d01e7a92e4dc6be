"""Plans of clustering a class anew: they change nothing, say what would change, and are applied exactly or not at all."""

import numpy as np
import pytest

from pipelines.database import catalog, reclustering
from pipelines.database.confirmations import LostConfirmationError, check_confirmations, lost_confirmations
from pipelines.database.identities import Assignment
from pipelines.errors import AttendanseeError, ConflictError, UnknownIdError
from pipelines.services.clustering import FaceCropClusteringService
from pipelines.services.decisions import DecisionService
from pipelines.services.reclustering import ReclusteringConfig, ReclusteringService, rows

CONFIG = ReclusteringConfig()


@pytest.fixture
def service(database):
    return ReclusteringService()


@pytest.fixture
def class_id(embedded_class, process_class, database) -> int:
    """The class m as it should be: three provisional students."""
    embedded_class.session("m__1", [["ann", "bob"], ["ann", "bob"]])
    embedded_class.session("m__2", [["ann", "bob", "cem"], ["cem"], ["cem"]])
    process_class("dlib")
    with database.connection() as connection:
        return catalog.find_class(connection, "m")


def everything(database, class_id: int) -> reclustering.ClassState:
    with database.connection() as connection:
        return reclustering.read_class_state(connection, class_id, "dlib")


def give(database, crop_id: int, student_id: int) -> None:
    """What a wrong automatic assignment leaves."""
    with database.connection() as connection:
        connection.execute(
            "UPDATE assignments SET student_id = %s, decided_by = 'knn', state = 'assigned' WHERE crop_id = %s",
            [student_id, crop_id],
        )


def crop_of(embedded_class, person: str, number: int) -> int:
    """The person's n-th face."""
    return sorted(crop_id for (crop_id, name) in embedded_class.everyone if name == person)[number]


def student_of(database, crop_id: int) -> int:
    with database.connection() as connection:
        return connection.execute("SELECT student_id FROM assignments WHERE crop_id = %s", [crop_id]).fetchone()[0]


def test_a_class_that_is_right_has_an_empty_plan(service, class_id, database):
    before = everything(database, class_id)
    plan = service.plan("m", "dlib", CONFIG)
    assert (plan.crops, plan.changes.clusters_found, plan.applied_at) == (9, 3, None)
    assert list(rows(plan.changes)) == []
    assert everything(database, class_id) == before
    applied = service.apply(plan.plan_id, "ann", "just to see")
    assert (applied.applied_by, applied.changes) == ("ann", plan.changes)
    assert everything(database, class_id) == before


def test_a_plan_says_what_changes_and_changes_nothing_until_it_is_applied(service, class_id, database, embedded_class):
    bob, cem = crop_of(embedded_class, "bob", 2), crop_of(embedded_class, "cem", 0)
    names = {person: student_of(database, crop_of(embedded_class, person, 0)) for person in ("ann", "bob", "cem")}
    right = everything(database, class_id)
    label = {person: right.students[student_id] for person, student_id in names.items()}
    # Bob is taken for cem in the second session, and cem for bob.
    give(database, bob, names["cem"])
    give(database, cem, names["bob"])
    before = everything(database, class_id)

    plan = service.plan("m", "dlib", CONFIG)
    assert everything(database, class_id) == before
    moved = {(crop.crop_id, crop.old_student, crop.new_student, crop.session) for crop in plan.changes.moved}
    assert moved == {(bob, label["cem"], label["bob"], "2"), (cem, label["bob"], label["cem"], "2")}
    assert (plan.changes.created, plan.changes.merged, plan.changes.emptied, plan.changes.attendance) == (
        [],
        [],
        [],
        [],
    )

    service.apply(plan.plan_id, "a teacher")
    assert everything(database, class_id) == right
    with pytest.raises(ConflictError, match=rf"^Reclustering plan {plan.plan_id} was applied by a teacher at "):
        service.apply(plan.plan_id, "another")


def test_students_who_are_made_merged_and_emptied_are_named(service, class_id, database, embedded_class):
    ann, bob = (student_of(database, crop_of(embedded_class, person, 0)) for person in ("ann", "bob"))
    cem = student_of(database, crop_of(embedded_class, "cem", 0))
    names = everything(database, class_id).students
    # Two of bob's faces are ann's by mistake: they come back to the student who has the third.
    for number in (0, 1):
        give(database, crop_of(embedded_class, "bob", number), ann)
    plan = service.plan("m", "dlib", CONFIG)
    assert {(crop.old_student, crop.new_student) for crop in plan.changes.moved} == {(names[ann], names[bob])}
    assert (plan.changes.created, plan.changes.merged, plan.changes.emptied) == ([], [], [])

    # One person who was made two: their second student has no face any more, and is gone once the plan is applied.
    give(database, crop_of(embedded_class, "bob", 0), bob)
    give(database, crop_of(embedded_class, "bob", 1), bob)
    give(database, crop_of(embedded_class, "ann", 2), cem)
    with database.connection() as connection:
        for number in range(3):
            connection.execute("DELETE FROM assignments WHERE crop_id = %s", [crop_of(embedded_class, "cem", number)])
    plan = service.plan("m", "dlib", CONFIG)
    (merged,) = plan.changes.merged
    assert (merged.student, merged.into, merged.crops) == (names[cem], names[ann], 1)
    (created,) = plan.changes.created
    assert created.crops == 3
    assert {row["change"] for row in rows(plan.changes)} == {"created", "merged", "face moved", "attendance"}
    service.apply(plan.plan_id, "a teacher")
    after = everything(database, class_id)
    assert cem not in after.students
    assert sorted(after.students.values()) == sorted([names[ann], names[bob], created.student])


@pytest.mark.parametrize("change", ["a decision", "another assignment", "a new photo", "another vector"])
def test_a_plan_is_refused_when_the_class_has_moved_on(service, class_id, database, embedded_class, change):
    plan = service.plan("m", "dlib", CONFIG)
    crop_id = crop_of(embedded_class, "ann", 0)
    if change == "a decision":
        DecisionService("a teacher").rename(student_of(database, crop_id), "Ann")
    elif change == "another assignment":
        give(database, crop_id, student_of(database, crop_of(embedded_class, "bob", 0)))
    elif change == "a new photo":
        embedded_class.session("m__3", [["ann"]])
    else:
        with database.connection() as connection:
            connection.execute("UPDATE embeddings_dlib SET created_at = now() WHERE crop_id = %s", [crop_id])
    before = everything(database, class_id)
    with pytest.raises(ConflictError, match=r"is out of date: .* Make a new plan and look at it\.$"):
        service.apply(plan.plan_id, "a teacher")
    assert everything(database, class_id) == before
    again = service.plan("m", "dlib", CONFIG)
    assert service.apply(again.plan_id, "a teacher").applied_by == "a teacher"


def test_what_a_person_confirmed_stays_whatever_the_clusters_say(service, class_id, database, embedded_class):
    cem = crop_of(embedded_class, "cem", 0)
    ann = student_of(database, crop_of(embedded_class, "ann", 0))
    bob_crop = crop_of(embedded_class, "bob", 0)
    DecisionService("a teacher").rename(ann, "Ann")
    DecisionService("a teacher").assign(bob_crop, ann)
    plan = service.plan("m", "dlib", CONFIG)
    assert bob_crop not in {crop.crop_id for crop in plan.changes.moved}
    service.apply(plan.plan_id, "a teacher")
    assert student_of(database, bob_crop) == ann
    assert student_of(database, cem) != ann


def test_a_run_that_would_lose_a_confirmed_identity_writes_nothing(class_id, database, embedded_class, monkeypatch):
    ann = crop_of(embedded_class, "ann", 0)
    DecisionService("a teacher").assign(ann, student_of(database, ann))
    bob = student_of(database, crop_of(embedded_class, "bob", 0))
    before = everything(database, class_id)

    def forgetful(*args: object) -> list[Assignment]:
        return [Assignment(ann, "assigned", bob, "cluster")]

    # Nothing in the program loses one: that is what has to be broken here.
    monkeypatch.setattr("pipelines.services.clustering._assignments", forgetful)
    with pytest.raises(LostConfirmationError, match=rf"^1 confirmed identities would have been lost.*\(crop {ann}\)"):
        FaceCropClusteringService("dlib").cluster_class_crops(class_id, include_identified=True)
    assert everything(database, class_id) == before
    with database.connection() as connection:
        assert lost_confirmations(connection, class_id, "dlib") == []
        check_confirmations(connection, class_id, "dlib")


def test_an_unknown_plan_and_class_are_named(service, class_id):
    with pytest.raises(UnknownIdError, match=r"^There is no reclustering plan 99: make one with"):
        service.apply(99, "a teacher")
    with pytest.raises(AttendanseeError, match=r"^There is no class 'nobody'"):
        service.plan("nobody", "dlib", CONFIG)


def test_vectors_that_differ_give_the_same_plan_twice(service, class_id, embedded_class, database):
    embedded_class.session("m__3", [["dan", "eve"], ["dan"]])
    first, second = (service.plan("m", "dlib", CONFIG).changes for _ in range(2))
    assert first == second
    assert sum(student.crops for student in first.created) == 3
    assert np.isin([crop.old_student for crop in first.moved], None).all()


def test_a_visitors_faces_stay_the_visitors(service, class_id, database, embedded_class):
    bob, cem = (student_of(database, crop_of(embedded_class, person, 0)) for person in ("bob", "cem"))
    DecisionService("a teacher").hide(cem)
    DecisionService("a teacher").rename(bob, "Bob")
    # One of the visitor's faces was taken for Bob, whose own are nobody's by now.
    give(database, crop_of(embedded_class, "cem", 2), bob)
    with database.connection() as connection:
        for number in range(3):
            connection.execute("DELETE FROM assignments WHERE crop_id = %s", [crop_of(embedded_class, "bob", number)])
    plan = service.plan("m", "dlib", CONFIG)
    service.apply(plan.plan_id, "a teacher")
    assert {student_of(database, crop_of(embedded_class, "cem", number)) for number in range(3)} == {cem}
