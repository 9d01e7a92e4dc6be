"""The three workflows of the original, on real photos, by jobs, by the command line and over HTTP: the same end state.

First session: faces are detected, clustered into provisional students, and these are named. Later session: faces are
assigned by their nearest neighbours, and who is left over becomes a provisional student. Class-wide: all crops are
clustered anew, and every name stays.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import dagster as dg
import numpy as np
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from pipelines.api.app import create_app
from pipelines.cli import main
from pipelines.definitions import defs
from pipelines.demo_photos import CLASS_NAME, FACES
from pipelines.jobs.operations import RESPONSE
from pipelines.services.attendance import AttendanceService
from pipelines.settings import get_settings

MODEL = {"embedding_model": "dlib"}
FIRST, SECOND, THIRD = "2026-09-07", "2026-09-14", "2026-09-21"

Call = Callable[..., dict[str, Any]]


def by_job(operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
    result = defs.resolve_job_def(operation).execute_in_process(
        run_config={"ops": {operation: {"config": parameters}}}, instance=dg.DagsterInstance.ephemeral()
    )
    (output,) = [event.step_output_data for event in result.all_node_events if event.is_successful_output]
    return output.metadata[RESPONSE].value


def by_command(operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
    if operation == "rename_student":
        arguments = ["students", "rename", CLASS_NAME, parameters["student_id"], parameters["name"]]
    else:
        target, *_ = [value for name, value in parameters.items() if name in ("session_id", "class_id", "crop_id")]
        arguments = [operation.replace("_", "-"), target]
        for name, value in parameters.items():
            flag = f"--{name.replace('_', '-')}"
            if name.endswith("_id"):
                continue
            arguments += [flag if value else f"--no-{flag[2:]}"] if isinstance(value, bool) else [flag, value]
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def over_http(operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
    body = {name: value for name, value in parameters.items() if not name.endswith("_id")}
    path = {
        "cluster_session_crops": "sessions/{session_id}/cluster-crops/",
        "cluster_class_crops": "classes/{class_id}/cluster-crops/",
        "assign_crop": "face-crops/{crop_id}/assign/",
        "assign_session_crops": "sessions/{session_id}/assign-crops/",
        "assign_class_crops": "classes/{class_id}/assign-crops/",
        "rename_student": "students/{student_id}/",
    }[operation].format(**parameters)
    with TestClient(create_app(get_settings()), base_url="http://127.0.0.1") as client:
        method = "PATCH" if operation == "rename_student" else "POST"
        response = client.request(method, f"/api/attendance/{path}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def who_is_where(database) -> dict[int, tuple[str, str | None]]:
    """Session and student of each face."""
    with database.connection() as connection:
        rows = connection.execute(
            """SELECT f.id, s.name, st.name FROM face_crops f
            JOIN images i ON i.id = f.image_id JOIN sessions s ON s.id = i.session_id
            LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = 'dlib' AND a.state = 'assigned'
            LEFT JOIN students st ON st.id = a.student_id"""
        ).fetchall()
    return {crop_id: (session, name) for crop_id, session, name in rows}


def students(database) -> dict[str, bool]:
    """Name -> provisional."""
    with database.connection() as connection:
        return dict(connection.execute("SELECT name, provisional FROM students").fetchall())


def names_of_provisional_students(database) -> dict[int, str]:
    """Which of the six each provisional student is, by where they sit in the first photo, which is 1.1 times larger."""
    centres = {name: np.array([x + w / 2, y + h / 2]) for name, (x, y, w, h) in FACES.items()}
    with database.connection() as connection:
        rows = connection.execute(
            """SELECT a.student_id, f.x + f.width / 2, f.y + f.height / 2 FROM face_crops f
            JOIN images i ON i.id = f.image_id JOIN assignments a ON a.crop_id = f.id
            WHERE i.path = (SELECT min(path) FROM images)"""
        ).fetchall()
    named = {
        student_id: min(centres, key=lambda name: np.linalg.norm(centres[name] * 1.1 - (x, y)))
        for student_id, x, y in rows
    }
    assert sorted(named.values()) == sorted(FACES)
    return named


@pytest.mark.slow
@pytest.mark.parametrize("call", [by_job, by_command, over_http])
def test_every_front_door_leads_to_the_same_end(call: Call, detect, database):
    first = detect(FIRST)
    clustered = call("cluster_session_crops", {"session_id": first, **MODEL})
    assert (clustered["clusters_found"], clustered["students_created"], clustered["crops_assigned"]) == (6, 6, 12)
    assert set(students(database)) == {f"Class_{CLASS_NAME}_Session_{FIRST}_Cluster_{n}" for n in range(1, 7)}
    for student_id, name in names_of_provisional_students(database).items():
        call("rename_student", {"student_id": student_id, "name": name})
    assert students(database) == dict.fromkeys(FACES, False)

    second, third = detect(SECOND), detect(THIRD)
    for session in (second, third):
        suggested = call("assign_session_crops", {"session_id": session, "auto_commit": False, **MODEL})
        assigned = call("assign_session_crops", {"session_id": session, **MODEL})
        assert [r["student_name"] for r in suggested["results"]] == [r["student_name"] for r in assigned["results"]]
        assert suggested["assigned"] == assigned["assigned"] == 6
    (guest,) = [r for r in assigned["results"] if r["status"] != "assigned"]
    assert call("assign_crop", {"crop_id": guest["crop_id"], **MODEL})["status"] == "no_match"
    left = call("cluster_session_crops", {"session_id": third, **MODEL})
    assert (left["students_created"], left["crops_assigned"]) == (1, 1)

    with database.connection() as connection:
        (class_id,) = connection.execute("SELECT id FROM classes").fetchone()
    before = who_is_where(database)
    again = call("cluster_class_crops", {"class_id": class_id, "include_identified": True, **MODEL})
    assert (again["clusters_found"], again["students_created"], again["max_clusters_reached"]) == (7, 0, False)
    assert who_is_where(database) == before
    assert call("assign_class_crops", {"class_id": class_id, **MODEL})["total_crops"] == 0

    visitor = f"Class_{CLASS_NAME}_Session_{THIRD}_Cluster_1"
    assert students(database) == {**dict.fromkeys(FACES, False), visitor: True}
    # Fay is in neither photo of the second session, and Carl in both.
    assert Counter(before.values()) == {
        **{(FIRST, name): 2 for name in FACES},
        **{(SECOND, name): 2 if name == "Carl" else 1 for name in FACES if name != "Fay"},
        **{(THIRD, name): 1 for name in (*FACES, visitor)},
    }
    register = AttendanceService(database, "dlib").register(CLASS_NAME)
    absent = {("Fay", SECOND)}
    assert register.cells == {
        **{(n, s): "absent" if (n, s) in absent else "present" for n in FACES for s in (FIRST, SECOND, THIRD)},
        (visitor, THIRD): "unknown",
    }
