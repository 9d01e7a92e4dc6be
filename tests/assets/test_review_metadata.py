"""What the register's assets show in Dagster's UI, and that a face is in it only where the setting says so."""

import base64
import io
import re
from collections.abc import Callable
from urllib.parse import unquote
from xml.etree import ElementTree

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from pipelines.assets.class_attendance import build_class_attendance
from pipelines.assets.review_metadata import THUMBNAILS_LENGTH
from pipelines.assets.session_attendance import build_session_attendance
from pipelines.partitions import classes, sessions
from pipelines.resources import build_resources
from pipelines.resources.embedding.registry import get_spec
from pipelines.services.context import default_context
from pipelines.settings import get_settings


@pytest.fixture
def made(embedded_class, process_class, database) -> None:
    """The class "m": Ada and Bob with portraits, a session with them and forty others, all with a picture."""
    embedded_class.enrol("m", "Ada", "Bob")
    embedded_class.session("m__s1", [["Ada", "Bob", *map(str, range(40))]])
    rng, store = np.random.default_rng(1), default_context().store
    with database.connection() as connection:
        for (crop_id,) in connection.execute("SELECT id FROM face_crops").fetchall():
            path = store.write_crop(f"m/{crop_id}", rng.integers(0, 255, (120, 96, 3), np.uint8))
            connection.execute("UPDATE face_crops SET crop_path = %s WHERE id = %s", [path, crop_id])
    process_class("dlib")


@pytest.fixture
def metadata(made) -> Callable[[str], dict[str, dg.MetadataValue]]:
    def materialize(partition: str) -> dict[str, dg.MetadataValue]:
        instance = dg.DagsterInstance.ephemeral()
        instance.add_dynamic_partitions(sessions.name or "", ["m__s1", "m__enrol"])
        instance.add_dynamic_partitions(classes.name or "", ["m"])
        build = build_class_attendance if partition == "m" else build_session_attendance
        result = dg.materialize(
            [build(get_spec("dlib"))],
            instance=instance,
            partition_key=partition,
            resources=build_resources(get_settings()),
        )
        (event,) = result.get_asset_materialization_events()
        return dict(event.step_materialization_data.materialization.metadata)

    return materialize


def test_a_session_shows_its_register_its_numbers_and_its_similarities(metadata):
    shown = metadata("m__s1")
    records = [record.data for record in shown["register"].records]
    assert records[0] | {"risk": None} == {
        **{"student": "Ada", "status": "present", "by_hand": ""},
        **{"faces": 1, "doubtful_faces": 0, "risk": None},
    }
    assert {record["status"] for record in records} == {"present", "unknown"}
    numbers = {name: shown[name].value for name in ("present", "absent", "excused", "unknown", "questions")}
    assert numbers == {"present": 2, "absent": 0, "excused": 0, "unknown": 40, "questions": 40}
    assert 0 < shown["expected_false_present"].value < 0.2
    (address,) = re.findall(r"\]\(data:image/svg\+xml,(\S+)\)", shown["similarities"].md_str)
    texts = [text.text for text in ElementTree.fromstring(unquote(address)).iter("{http://www.w3.org/2000/svg}text")]
    assert {"student (2)", "runner-up (2)", "threshold 0.9350"} <= set(texts)


def test_a_session_is_shown_without_reading_the_vectors_of_the_class(metadata, monkeypatch):
    before = metadata("m__s1")["questions"].value

    def read_embeddings(*_):
        raise AssertionError("vectors were read")

    monkeypatch.setattr("pipelines.database.crops.read_embeddings", read_embeddings)
    assert metadata("m__s1")["questions"].value == before == 40


def test_a_class_shows_its_register_and_its_numbers(metadata):
    shown = metadata("m")
    assert [record.data for record in shown["register"].records][:2] == [
        {"student": "Ada", "s1": "present"},
        {"student": "Bob", "s1": "present"},
    ]
    assert {name: shown[name].value for name in ("students", "unknown", "cells_present", "set_by_hand")} == {
        **{"students": 2, "unknown": 40, "cells_present": 2, "set_by_hand": 0}
    }


def test_portraits_have_no_register(metadata):
    assert "register" not in metadata("m__enrol")


def test_faces_are_shown_only_where_the_setting_says_so_and_only_so_many(metadata, monkeypatch):
    for partition in ("m__s1", "m"):
        assert not any("base64" in str(value) for value in metadata(partition).values())
    monkeypatch.setenv("ATTENDANSEE_THUMBNAILS_IN_UI", "1")
    get_settings.cache_clear()
    for partition in ("m__s1", "m"):
        text = metadata(partition)["thumbnails"].md_str
        faces = re.findall(r"!\[unknown \d+\]\(data:image/jpeg;base64,([A-Za-z0-9+/=]+)\)", text)
        assert 0 < len(faces) < 40
        assert text.endswith(f"({42 - len(faces)} left out)")
        assert THUMBNAILS_LENGTH / 2 < len(text) <= THUMBNAILS_LENGTH + 200
        assert {Image.open(io.BytesIO(base64.b64decode(face))).size for face in faces} == {(48, 60)}
