"""`benchmarks/identity.py`: its figures on answers that can be reckoned by hand, its ways, and all of it on a tiny class."""

import csv
import importlib
import shutil
from types import ModuleType

import numpy as np
import pytest

from pipelines.faces.similarity import l2_normalise
from pipelines.resources.photo_store import PhotoStore
from pipelines.settings import PROJECT_ROOT, get_settings


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which imports others of its folder."""
    monkeypatch.syspath_prepend(str(PROJECT_ROOT / "benchmarks"))
    return importlib.import_module("identity")


@pytest.fixture
def faces(identity: ModuleType):
    """Ten portraits, and two sessions of two photos each that show all ten and a guest."""
    rng = np.random.default_rng(5)
    people = [f"person {n}" for n in range(10)]
    own = dict(zip([*people, "guest"], l2_normalise(rng.normal(size=(11, 128))), strict=True))
    places = [("enrol", f"{person}.jpg", person) for person in people]
    places += [(s, f"{s}/{n}.jpg", person) for s in ("a", "b") for n in (0, 1) for person in own]
    sessions, photos, shown = (list(column) for column in zip(*places, strict=True))
    vectors = l2_normalise(np.stack([own[person] for person in shown]) + 0.01 * rng.normal(size=(len(shown), 128)))
    guests = [person == "guest" for person in shown]
    return identity.Faces(list(range(len(shown))), vectors, sessions, photos, shown, guests)


def test_every_way_gets_an_easy_class_right(identity, faces):
    seen = faces.without_portraits()
    truth = {(session, person) for session, person in zip(seen.sessions, seen.people, strict=True) if person != "guest"}
    for way, answer in identity.OTHERS.items():
        answers = answer(faces)
        # Fifty clusters are too many for eleven people, and HDBSCAN sees no person in fewer than six faces.
        if way not in {"original: 50 clusters", "HDBSCAN as in Recognize"}:
            assert identity.recognition(seen, answers.named, truth) == ["1.000", "1.000", "0 of 4", "40 (100%)", "0"], (
                way
            )
        if answers.alone is not None:
            assert len(answers.alone) == len(seen.ids)
            assert len(answers.before) == len(seen.before_the_last_session().ids) == 22


def test_figures_are_those_reckoned_by_hand(identity, faces):
    four = faces.without_portraits().part([0, 1, 10, 11])
    assert four.people == ["person 0", "person 1", "guest", "person 0"]
    # The first two in one group, nobody's are alone: precision (1/2 + 1/2 + 1 + 1) / 4, recall (1/2 + 1 + 1 + 1/2) / 4.
    precision, recall, f, pairs = identity.grouping(four, ["x", "x", None, None])
    assert (precision, recall, f, pairs) == (0.75, 0.75, 0.75, 0.0)
    names = ["person 0", "person 0", "person 1", None]
    # Said: persons 0 and 1 in session a; true: persons 0 and 1 and 2.
    truth = {("a", f"person {n}") for n in range(3)}
    assert identity.recognition(four, names, truth) == ["1.000", "0.667", "1 of 1", "1 (33%)", "1"]


def test_stability_is_the_share_of_names_that_stay(identity, faces):
    seen = faces.without_portraits()
    before = ["x", "x", "y", "y", None, *[None] * 17]
    after = ["p", "p", "p", "q", "q", *[None] * 39]
    # x is p and y is q in the best matching: three of four names stay; taken literally, none does.
    assert identity.stability(seen, before, after, keeps_names=False) == 0.75
    assert identity.stability(seen, before, after, keeps_names=True) == 0.0
    assert identity.stability(seen, before, [*before, *[None] * 22], keeps_names=True) == 1.0


@pytest.mark.slow
def test_a_tiny_class_goes_all_the_way(identity, database, shared_faces, tmp_path):
    """Two sessions and five portraits of a labelled class."""
    source, folder = shared_faces / "sessions" / "caltech_class", tmp_path / "tiny"
    for name in ("session_01", "session_02"):
        shutil.copytree(source / name, folder / name)
    with (source / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["file"].split("/")[0] in {"session_01", "session_02"}]
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "enrol").mkdir()
    for portrait in sorted((source / "enrol").iterdir())[:5]:
        shutil.copyfile(portrait, folder / "enrol" / portrait.name)
    settings = get_settings()
    store = PhotoStore(photos=str(tmp_path / "place" / "photos"), crops=str(tmp_path / "place" / "crops"))
    workplace = importlib.import_module("workplace").Workplace
    place = workplace(tmp_path / "place", tmp_path / "weights", settings, database, store)
    grouped, recognised = identity.compare(place, "tiny", folder)
    assert f"5 students, 2 sessions, {len(rows)} faces found" in recognised.title
    cells = {row[0]: row[1:] for row in zip(*(column.cells for column in recognised.columns), strict=True)}
    assert set(cells) == {*identity.OTHERS, "ours"}
    precision, _, guests, _, wrong, _ = cells["ours"]
    assert (precision, guests.split()[0], wrong) == ("1.000", "0", "0")
    alone = {row[0]: row[1:] for row in zip(*(column.cells for column in grouped.columns), strict=True)}
    assert float(alone["ours"][3]) >= 0.99
    assert float(alone["ours"][5]) == 1.0
