"""The application over a class in the test's database."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from fastapi.testclient import TestClient

from pipelines.api.app import create_app
from pipelines.settings import get_settings

API = "/api/attendance"


@pytest.fixture
def serve(database) -> Iterator[Callable[..., TestClient]]:
    """Makes clients of the application with changed settings; errors come as answers, as over a wire."""
    clients = []

    def start(base_url: str = "http://127.0.0.1:8000", **changes) -> TestClient:
        settings = get_settings().model_copy(update=changes)
        client = TestClient(create_app(settings), base_url=base_url, raise_server_exceptions=False)
        clients.append(client)
        return client.__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve) -> TestClient:
    """A program on this machine, with no token set."""
    return serve()


@dataclass
class School:
    """The class Math101: portraits of Ada and Bob, sessions s1 and s2 with them, and Eve, whom nobody knows."""

    class_id: int
    sessions: dict[str, int]
    crops: dict[tuple[str, int, str], int]
    students: dict[str, int]


@pytest.fixture
def school(embedded_class, database) -> School:
    """The class before any operation."""
    students = embedded_class.enrol("Math101", "Ada", "Bob")
    crops = {}
    for session in ("s1", "s2"):
        made = embedded_class.session(f"Math101__{session}", [["Ada", "Bob", "Eve"], ["Ada", "Eve"]])
        crops |= {(session, *place): crop_id for place, crop_id in made.items()}
    with database.connection() as connection:
        connection.execute("UPDATE classes SET active_model = 'dlib'")
        connection.execute("UPDATE images SET taken_at = '2026-09-07 10:00'")  # as most cameras say
        sessions = dict(connection.execute("SELECT name, id FROM sessions").fetchall())
        (class_id,) = connection.execute("SELECT id FROM classes").fetchone()
    return School(class_id, sessions, crops, students)
