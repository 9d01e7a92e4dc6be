"""A class's thresholds on made vectors in a real database: found, refused, adopted, in use, reset."""

import shutil
from collections.abc import Callable

import numpy as np
import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.database import calibrations, catalog, crops
from pipelines.errors import AttendanseeError, ConflictError, ParameterError, UnknownIdError
from pipelines.faces.calibration import operating_threshold, search_gallery
from pipelines.faces.similarity import calibrated_similarity
from pipelines.partitions import parse_session_key
from pipelines.resources.embedding.registry import get_spec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.services.assignment import FaceCropAssignmentService
from pipelines.services.attendance import AttendanceService
from pipelines.services.calibration import (
    AdoptionAnswer,
    CalibrationReport,
    adopt_calibration,
    calibrate_class,
    reset_calibration,
)
from pipelines.services.clustering import FaceCropClusteringService
from pipelines.services.context import default_context
from pipelines.services.decisions import DecisionService
from pipelines.services.session_assignment import AssignmentConfig, AssignmentReport, SessionAssignmentService
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService
from pipelines.services.thresholds import class_spec
from pipelines.settings import get_settings


def class_id(world, class_name: str = "m") -> int:
    with world.database.connection() as connection:
        return catalog.find_class(connection, class_name)


@pytest.fixture
def world(confirmed_class):
    return confirmed_class


@pytest.fixture
def found(world) -> Callable[..., CalibrationReport]:
    def run(fpir: float = 0.01, class_name: str = "m", model: str = "dlib") -> CalibrationReport:
        report, _ = calibrate_class(world.database, class_name, model, world.version, fpir, "run 7")
        return report

    return run


@pytest.fixture
def process(world) -> Callable[[str], AssignmentReport]:
    """Cluster and assign a session and write its attendance, as the assets do."""

    def run(key: str) -> AssignmentReport:
        parsed = parse_session_key(key)
        SessionClusteringService(world.database, "dlib", world.version).cluster_session(parsed, ClusteringConfig())
        service = SessionAssignmentService(world.database, "dlib", world.version)
        report = service.assign_session(parsed, AssignmentConfig())
        AttendanceService(world.database, "dlib").register_session(parsed)
        return report

    return run


def adopt(report: CalibrationReport, reason: str = "better than the default", by: str = "ann") -> AdoptionAnswer:
    assert report.calibration_id is not None
    return adopt_calibration(default_context(), report.calibration_id, reason, adopted_by=by)


def test_confirmed_identities_give_thresholds_and_say_what_they_do(world, found):
    report = found()
    assert (report.confirmed_crops, report.crops_without_vector, report.students) == (300, 0, 10)
    assert (report.impostor_comparisons, report.genuine_comparisons) == (300, 300)
    # Three would be allowed; but two crops that are each other's nearest strangers have one score.
    assert (report.fpir, report.tpir) == (2 / 300, 1.0)
    assert (report.fpir_low, report.fpir_high) == pytest.approx((0.00081, 0.02388), abs=1e-5)
    assert report.tpir_low == pytest.approx(0.98778, abs=1e-5)
    assert report.result.startswith(f"up to a distance of {report.operating_distance:.4f}, 2 of 300 faces")
    assert "300 of 300 found their own student first" in report.result
    assert (report.in_use_operating_distance, report.in_use_fpir, report.in_use_tpir) == (0.065, 0.0, 1.0)

    # The same by a query: the best other student of each crop.
    with world.database.connection() as connection:
        best = connection.execute(
            """SELECT max(1 - (e.embedding <=> o.embedding)) FROM confirmed_crops c JOIN embeddings_dlib e USING (crop_id)
            JOIN confirmed_crops d ON d.student_id <> c.student_id JOIN embeddings_dlib o ON o.crop_id = d.crop_id
            GROUP BY c.crop_id ORDER BY 1 DESC"""
        ).fetchall()
        stored = connection.execute("SELECT impostor_comparisons, false_positives, run_id FROM calibrations").fetchone()
    assert 1 - report.operating_distance == pytest.approx(best[3][0], abs=3e-6)
    assert stored == (300, 2, "run 7")


def test_a_student_without_a_second_photo_is_searched_for_by_strangers_only(world, found):
    world.enrol("m", "kim")
    report = found()
    assert (report.impostor_comparisons, report.genuine_comparisons, report.students) == (301, 300, 11)


def test_the_same_photo_in_two_sessions_is_one_photo(world, found):
    """Made photos are told apart by their paths' hashes; here two sessions hold one file."""
    made = world.session("m__a", [["kim"]])
    copy = world.session("m__b", [["kim"]])
    world.confirm("m", made | {(1, "kim"): copy[0, "kim"]})
    assert found().genuine_comparisons == 302
    with world.database.connection() as connection:
        connection.execute("UPDATE images SET sha256 = 'one file' WHERE path IN ('m/a/0.jpg', 'm/b/0.jpg')")
    assert found().genuine_comparisons == 300


def test_decisions_that_were_taken_back_and_photos_that_are_gone_do_not_count(world, found):
    made = world.session("m__later", [["ann"], ["bob"], ["cem"]])
    world.confirm("m", made)
    assert found().confirmed_crops == 303
    DecisionService("ann").unassign(made[0, "ann"])
    with world.database.connection() as connection:
        connection.execute("UPDATE images SET removed_at = now() WHERE path = 'm/later/1.jpg'")
        connection.execute("DELETE FROM embeddings_dlib WHERE crop_id = %s", [made[2, "cem"]])
    report = found()
    assert (report.confirmed_crops, report.crops_without_vector, report.impostor_comparisons) == (301, 1, 300)


def test_too_few_confirmed_crops_are_said_in_numbers_and_nothing_is_stored(embedded_class):
    embedded_class.enrol("m", "ann", "bob")
    embedded_class.confirm("m", embedded_class.session("m__1", [["ann", "bob"]] * 3))
    report, searches = calibrate_class(embedded_class.database, "m", "dlib", embedded_class.version, 0.01)
    assert report.result == ("not enough data: 8 impostor comparisons, 299 needed; 8 genuine comparisons, 29 needed")
    assert (report.calibration_id, report.operating_distance, report.slope) == (None, None, None)
    assert len(searches.impostor) == 8
    with embedded_class.database.connection() as connection:
        assert connection.execute("SELECT count(*) FROM calibrations").fetchone() == (0,)
        assert class_spec(connection, "dlib", class_id(embedded_class)) == get_spec("dlib")


def test_a_class_and_a_lineage_without_anything_have_not_enough_data(world, found):
    made = world.session("empty__1", [["ann"]])
    assert made
    for report in (found(class_name="empty"), found(model="arcface")):
        assert report.result.startswith("not enough data: 0 impostor comparisons, 299 needed")
    with pytest.raises(AttendanseeError, match="There is no class 'nowhere'"):
        found(class_name="nowhere")


def test_vectors_of_another_version_are_not_compared(world, found):
    world.version = "other"
    report = found()
    assert (report.confirmed_crops, report.crops_without_vector) == (300, 300)
    assert report.result.startswith("not enough data: 0 impostor")


def test_adoption_holds_from_the_next_run_on_and_reset_restores_it(world, found, process, identities_of):
    # So far from her portrait that the model's own threshold, 0.065, does not take her for Ann.
    unclear = world.session("m__unclear", [["ann"]], distance=0.3)
    before = process("m__unclear")
    assert (before.distance_threshold, before.verification_threshold, before.margin) == (0.065, 0.07, 0.01)
    stranger = {(0, "ann"): "Class_m_Session_unclear_Cluster_1"}
    assert identities_of(unclear) == stranger

    report = found()
    answer = adopt(report)
    assert identities_of(unclear) == stranger
    after = process("m__unclear")
    assert after.distance_threshold == answer.assignment_distance == report.operating_distance
    assert after.verification_threshold == answer.verification_threshold == report.verification_threshold
    assert after.margin == before.margin
    assert identities_of(unclear) == {(0, "ann"): "ann"}
    with world.database.connection() as connection:
        evidence = connection.execute(
            "SELECT cosine_similarity, similarity FROM assignments WHERE crop_id = %s", [unclear[0, "ann"]]
        ).fetchone()
        # How faces are clustered is the model's still.
        spec = class_spec(connection, "dlib", class_id(world))
        assert spec.clustering_distance == get_spec("dlib").clustering_distance
    scale = calibrated_similarity(1 - evidence[0], report.verification_threshold, report.slope)
    assert evidence[1] == pytest.approx(scale, abs=1e-5)

    reset = reset_calibration(default_context(), "m", "dlib", adopted_by="ann")
    assert (reset.calibration_id, reset.assignment_distance, reset.similarity_slope) == (None, 0.065, None)
    assert identities_of(unclear) == {(0, "ann"): "ann"}
    again = process("m__unclear")
    assert again.distance_threshold == before.distance_threshold
    assert identities_of(unclear)[0, "ann"] not in ("ann", None)


def test_a_threshold_that_a_run_is_given_counts_more_than_the_adopted_one(world, found, process):
    adopt(found())
    world.session("m__1", [["ann"]])
    service = SessionAssignmentService(world.database, "dlib", world.version)
    report = service.assign_session(parse_session_key("m__1"), AssignmentConfig(distance_threshold=0.2))
    assert report.distance_threshold == 0.2


def test_the_operations_use_the_adopted_scale_and_say_so(world, found):
    unclear = world.session("m__unclear", [["ann"]], distance=0.3)
    service = FaceCropAssignmentService("dlib")
    with world.database.connection() as connection:
        session_id = catalog.find_session(connection, parse_session_key("m__unclear")).id
    before = service.assign_session_crops(session_id, auto_commit=False)
    assert before.cosine_threshold == pytest.approx(0.9362, abs=1e-4)
    assert before.results[0].status == "no_match"

    report = found()
    adopt(report)
    after = service.assign_session_crops(session_id, auto_commit=False)
    (result,) = after.results
    assert after.cosine_threshold < 0.65
    at_threshold = calibrated_similarity(1 - after.cosine_threshold, report.verification_threshold, report.slope)
    assert at_threshold == pytest.approx(0.6)
    assert (result.status, result.student_name) == ("assigned", "ann")
    scale = calibrated_similarity(1 - result.cosine_similarity, report.verification_threshold, report.slope)
    assert result.similarity == result.k_nearest[0].similarity == pytest.approx(scale)
    similar = service.similar_crops(unclear[0, "ann"], limit=1).identified[0]
    assert similar.similarity == pytest.approx(scale)

    clustered = FaceCropClusteringService("dlib").cluster_class_crops(class_id(world), create_students=False)
    assert clustered.cosine_threshold == pytest.approx(1 - report.verification_threshold)
    # No other class and no other model is touched.
    with world.database.connection() as connection:
        other = catalog.ensure_class(connection, "other")
        assert class_spec(connection, "dlib", other) == get_spec("dlib")
        assert class_spec(connection, "arcface", class_id(world)) == get_spec("arcface")


def test_a_threshold_that_nothing_reaches_is_stated_as_none(world):
    service = FaceCropAssignmentService("dlib", similarity_threshold=1)
    assert service.assign_class_crops(class_id(world), auto_commit=False).cosine_threshold is None


def test_who_adopted_what_and_why_is_kept_for_good(world, found):
    first, second = found(), found(0.05)
    adopt(first, "as a trial", "ann")
    adopt(second, "more faces", "bob")
    reset_calibration(default_context(), "m", "dlib", "too many strangers", adopted_by="cem")
    adopt(first, "the trial was better")
    with world.database.connection() as connection:
        rows = connection.execute(
            "SELECT model, calibration_id, adopted_by, reason FROM calibration_adoptions ORDER BY id"
        ).fetchall()
        assert class_spec(connection, "dlib", class_id(world)).assignment_distance == first.operating_distance
        fpirs = connection.execute("SELECT fpir FROM calibrations ORDER BY id").fetchall()
    assert rows == [
        ("dlib", first.calibration_id, "ann", "as a trial"),
        ("dlib", second.calibration_id, "bob", "more faces"),
        ("dlib", None, "cem", "too many strangers"),
        ("dlib", first.calibration_id, "ann", "the trial was better"),
    ]
    assert fpirs == [(0.01,), (0.05,)]
    assert second.operating_distance > first.operating_distance
    # What holds is stated beside what was found.
    assert found().in_use_operating_distance == first.operating_distance


def test_thresholds_of_vectors_that_are_not_in_use_any_more_do_not_hold(world, found):
    report = found()
    adopt(report)
    with world.database.connection() as connection:
        for version, holds in ((world.version, True), ("newer", False), (None, True)):
            spec = class_spec(connection, "dlib", class_id(world), version=version)
            assert (spec.assignment_distance == report.operating_distance) is holds
            assert (spec == get_spec("dlib")) is not holds
        connection.execute("UPDATE calibrations SET version = 'older'")
    with pytest.raises(ConflictError, match="measured on vectors of the version older"):
        adopt(report)


def test_what_cannot_be_adopted_is_refused_in_one_sentence(world, found):
    with pytest.raises(UnknownIdError, match="There is no calibration 99"):
        adopt_calibration(default_context(), 99, "why not", adopted_by="ann")
    for reason in ("", "  \n"):
        with pytest.raises(ParameterError, match="say why"):
            adopt(found(), reason)
    with pytest.raises(AttendanseeError, match="There is no class 'nowhere'"):
        reset_calibration(default_context(), "nowhere", "dlib", adopted_by="ann")
    with world.database.connection() as connection:
        assert connection.execute("SELECT count(*) FROM calibration_adoptions").fetchone() == (0,)


def test_a_wrongly_confirmed_crop_shows_as_a_stranger_like_the_student(world, found):
    clean = found()
    made = world.session("m__wrong", [["ann"]] * 6)
    world.confirm("m", {(i, "bob"): crop_id for (i, _), crop_id in made.items()})
    spoilt = found()
    # Crops of Ann that are called Bob find Ann, and Ann's find Bob: the threshold must keep them out.
    assert spoilt.operating_distance < clean.operating_distance / 5
    assert spoilt.fpir <= 0.01


def test_crops_written_twice_with_one_vector_contradict_each_other(world, found):
    with world.database.connection() as connection:
        ids = [i for (i,) in connection.execute("SELECT crop_id FROM confirmed_crops ORDER BY 1").fetchall()]
        crops.write_embeddings(connection, "dlib", world.version, ids, np.eye(128, dtype=np.float32)[[0] * len(ids)])
    assert "exactly alike: correct the confirmed identities" in found().result


@pytest.mark.slow
def test_thresholds_of_real_faces_keep_to_the_asked_rate_with_other_people(database, shared_faces, tmp_path):
    """169 photos of 16 people and a portrait each of 74 others, all taken as portraits: confirmed by their names."""
    for person in (shared_faces / "caltech_faces").iterdir():
        if person.is_dir():
            shutil.copytree(person, tmp_path / "Campus" / "enrol" / person.name)
    for portrait in (shared_faces / "nasa_crews" / "portraits").iterdir():
        folder = tmp_path / "Crew" / "enrol" / portrait.stem
        folder.mkdir(parents=True)
        shutil.copy(portrait, folder)
    assert CliRunner().invoke(main, ["run", str(tmp_path), "--model", "dlib"], catch_exceptions=False).exit_code == 0

    version = EmbeddingModels.from_settings(get_settings()).version("dlib")
    report, searches = calibrate_class(database, "Campus", "dlib", version, 0.05)
    assert (report.impostor_comparisons, report.genuine_comparisons, report.students) == (169, 167, 16)
    assert 0.06 < report.operating_distance < 0.09
    assert report.tpir == 1
    # The scale tells the two apart: nobody's nearest crop is doubtful, nor is any stranger's.
    assert calibrated_similarity(1 - np.sort(searches.genuine)[5], report.verification_threshold, report.slope) > 0.9
    assert calibrated_similarity(1 - searches.impostor.max(), report.verification_threshold, report.slope) < 0.1
    crew, _ = calibrate_class(database, "Crew", "dlib", version, 0.05)
    assert crew.result == "not enough data: 0 genuine comparisons, 29 needed"
    assert crew.in_use_fpir <= 0.01

    # Thresholds from half of the 90 people, tried on the other half.
    with database.connection() as connection:
        confirmed = {
            crop.crop_id: crop.student_id
            for name in ("Campus", "Crew")
            for crop in calibrations.read_confirmed(connection, catalog.find_class(connection, name))
        }
        ids, vectors = crops.read_embeddings(connection, "dlib", version, confirmed, 128)
    students, photos = np.array([confirmed[i] for i in ids]), np.arange(len(ids))
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(50):
        one = np.isin(students, rng.permutation(np.unique(students))[:45])
        here, there = (search_gallery(vectors[half], students[half], photos[half]) for half in (one, ~one))
        shares.append(there.false_positives(operating_threshold(here.impostor, 0.05)).share)
    assert 0.025 < np.median(shares) < 0.08
