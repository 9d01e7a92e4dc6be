"""The examples of the three services' documentation, each run over a class in the test's database."""

import doctest
import inspect
import shutil

import pytest

from pipelines.demo_photos import CLASS_NAME
from pipelines.partitions import SessionKey
from pipelines.services import EmbeddingService, FaceCropAssignmentService, FaceCropClusteringService

SERVICES = [EmbeddingService, FaceCropAssignmentService, FaceCropClusteringService]
NAMESPACE = {"SessionKey": SessionKey} | {service.__name__: service for service in SERVICES}
EXAMPLES = {
    example.name: example
    for service in SERVICES
    for example in doctest.DocTestFinder(exclude_empty=False).find(service, service.__name__, globs=NAMESPACE)
}
METHODS = [
    f"{service.__name__}.{name}"
    for service in SERVICES
    for name, _ in inspect.getmembers(service, inspect.isfunction)
    if not name.startswith("_")
]


@pytest.fixture
def portrait(unnamed_photos, tmp_path, monkeypatch):
    """portrait.jpg, in the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(min((unnamed_photos / CLASS_NAME / "2026-09-07").glob("*.jpg")), "portrait.jpg")


@pytest.fixture
def math101(embedded_class, database):
    """Class 1: session 1 with crops 1 to 8, five of Ada Lovelace and three of Alan Turing, and a portrait of each."""
    ada, alan = "Ada Lovelace", "Alan Turing"
    made = embedded_class.session("Math101__2026-09-07", [[ada, alan]] * 3 + [[ada]] * 2)
    assert sorted(made.values()) == list(range(1, 9))
    embedded_class.enrol("Math101", ada, alan)
    with database.connection() as connection:
        connection.execute("UPDATE images SET searched_with = 'made'")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_an_example(name):
    assert EXAMPLES[name].examples


@pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if example.examples])
def test_the_example_gives_what_it_says(math101, portrait, name):
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    runner.run(EXAMPLES[name], out=said.append, clear_globs=False)
    assert runner.failures == 0, "".join(said)
