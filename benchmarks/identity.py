"""Who is who on labelled class photos: our way beside those of other projects, on the same crops and vectors.

    .venv/bin/python benchmarks/identity.py [--sets caltech_class small crowd guests nasa_crews] [--keep DIR]

Every class set is detected and embedded once (dlib, through the services that the assets call, into a database in a
temporary folder), and then grouped and named twice: without anybody's portrait, and with one of each student. Ours are
the services; each other way gets the very same vectors. The photos are those of ../shared/data/faces. `small`, `crowd` and
`guests` are made of caltech_faces by ../shared/tools/make_sessions.py, with strangers from nasa_crews as guests: small
faces; many small faces and guests; many guests. `--keep` is where they are made and left.

Without portraits: BCubed and the F of pairs say how well the groups agree with the people. Stability: all but the last
session are processed, then the last one arrives and everything is processed again; the share of the faces with a name
that have the same name still. Ours have names that the database keeps; the groups of a way that keeps none are given the
old names in the one-to-one matching that saves the most, which is more than these ways do by themselves.

With portraits: attendance over (session, student); guests accepted, of all faces of people who are not enrolled; students'
faces with a right, and with a wrong name, of all that were found.
"""

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from embedding import machine
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from workplace import Workplace, workplace

from pipelines.database import catalog, crops
from pipelines.faces.assignment import knn_votes
from pipelines.faces.metrics import bcubed, match_boxes, precision_recall
from pipelines.faces.similarity import cosine_similarity_matrix, distance_for
from pipelines.partitions import ENROL, SessionKey
from pipelines.resources.embedding.registry import get_spec
from pipelines.resources.photo_reader import read_photo
from pipelines.services.intake import register_session_images
from pipelines.services.session_assignment import AssignmentConfig, SessionAssignmentService
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService
from pipelines.settings import PROJECT_ROOT

MODEL = "dlib"
SHARED = PROJECT_ROOT.parent / "shared"
# Name: seed, students, sessions, photos a session, guests a session, canvas, heights of faces in pixels.
MADE = {
    "small": (101, 12, 5, 2, 4, [1600, 900], [28, 52]),
    "crowd": (303, 14, 6, 2, 10, [1920, 1080], [24, 48]),
    "guests": (202, 10, 5, 3, 8, [1920, 1080], [45, 90]),
}
SETS = ["caltech_class", *MADE, "nasa_crews"]
# DeepFace's thresholds for dlib's vectors as they are (0.6) and for normalised ones (0.4): what dlib's documents say of
# distances is about vectors so much longer than ours.
DLIB_LENGTH = 0.6 / 0.4
Names = Sequence[int | str | None]


@dataclass(frozen=True)
class Faces:
    """The found faces of a class, in the order of their sessions; those of portraits come first in every array.

    vectors: (n, d). sessions, photos: (n,) of each; the portraits' session is "enrol". people: who each shows, None where
    no label says so. guests: whether it is somebody without a portrait.
    """

    ids: list[int]
    vectors: NDArray[np.float32]
    sessions: list[str]
    photos: list[str]
    people: list[str | None]
    guests: list[bool]

    def part(self, chosen: Iterable[int]) -> "Faces":
        """These of the faces."""
        rows = list(chosen)
        lists = ([values[i] for i in rows] for values in (self.sessions, self.photos, self.people, self.guests))
        sessions, photos, people, guests = lists
        return Faces([self.ids[i] for i in rows], self.vectors[rows], sessions, photos, people, guests)  # type: ignore[arg-type]

    def without_portraits(self) -> "Faces":
        """The faces of the class's photos."""
        return self.part(i for i, session in enumerate(self.sessions) if session != ENROL)

    def before_the_last_session(self) -> "Faces":
        """What was there before the last session."""
        last = max(self.sessions)
        return self.part(i for i, session in enumerate(self.sessions) if session != last)


class Answers(NamedTuple):
    """What a way says of the class's faces, in the order of `Faces.without_portraits`: a name, or None for nobody.

    alone: without portraits; before: the same before the last session; named: with portraits, None where a name is not
    a student's; groups: with portraits, whoever they are. keeps_names: whether the names of `before` and `alone` are meant
    to be the same.
    """

    alone: Names | None
    before: Names | None
    named: Names
    groups: Names
    keeps_names: bool = False


def main() -> None:
    """Makes the class sets, processes each and prints its two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--keep", type=Path, help="where to make and leave the class sets; default: removed")
    arguments = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"The labelled photos are not here: put them into {SHARED}.")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(machine())
    with tempfile.TemporaryDirectory(prefix="attendansee-benchmark-") as temporary, workplace(None) as place:
        for name in arguments.sets:
            folder = class_set(name, arguments.keep or Path(temporary))
            for table in compare(place, name, folder):
                console.print(table)


def compare(place: Workplace, name: str, folder: Path) -> tuple[Table, Table]:
    """Process a class set (a class folder with labels.csv) in every way; its results without and with portraits."""
    class_name = name.replace("_", "-")
    shutil.copytree(folder, place.folder / "photos" / class_name)
    version = embed(place, class_name)
    faces, labelled = read_faces(place, class_name, folder / "labels.csv", version)
    answers = {way: answer(faces) for way, answer in OTHERS.items()}
    answers["ours"] = ours(place, class_name, version, faces)

    seen = faces.without_portraits()
    known = {person for person, session in zip(faces.people, faces.sessions, strict=True) if session == ENROL}
    truth = {(session, person) for session, person in labelled if person in known}
    title = f"{name}: {len(known)} students, {len(set(seen.sessions))} sessions, {len(seen.ids)} faces found"
    grouped, recognised = Table(title=f"{title}; no portraits"), Table(title=f"{title}; one portrait each")
    for heading in ("way", "groups", "BCubed P", "R", "F", "pairs F", "stability"):
        grouped.add_column(heading, justify="left" if heading == "way" else "right")
    for heading in ("way", "attendance P", "R", "guests accepted", "right", "wrong", "BCubed F"):
        recognised.add_column(heading, justify="left" if heading == "way" else "right")
    for way, answer in answers.items():
        if answer.alone is not None and answer.before is not None:
            figures = grouping(seen, answer.alone)
            kept = stability(seen, answer.before, answer.alone, answer.keeps_names)
            grouped.add_row(way, str(len({*answer.alone} - {None})), *(f"{figure:.3f}" for figure in (*figures, kept)))
        recognised.add_row(way, *recognition(seen, answer.named, truth), f"{grouping(seen, answer.groups)[2]:.3f}")
    return grouped, recognised


def class_set(name: str, folder: Path) -> Path:
    """The class folder of that name, made where it has to be, with photos, portraits (enrol/) and labels.csv."""
    if name == "caltech_class":
        return SHARED / "data" / "faces" / "sessions" / name
    made = folder / name
    if made.is_dir():
        return made
    if name == "nasa_crews":
        _make_nasa_crews(made)
        return made
    seed, count, sessions, photos, guests, canvas, heights = MADE[name]
    faces = SHARED / "data" / "faces"
    people: dict[str, list[Any]] = {}
    for row in _rows(faces / "caltech_faces" / "labels.csv"):
        box = [int(row[side]) for side in "xywh"]
        people.setdefault(row["identity"], []).append([str(faces / "caltech_faces" / row["file"]), box])
    enough = sorted(person for person, photos_of in people.items() if len(photos_of) > 1)
    random.Random(seed).shuffle(enough)
    students = sorted(enough[:count])
    spec = {
        **{"name": name, "seed": seed, "sessions": sessions, "photos_per_session": photos, "attend_p": 0.85},
        **{"guests_per_session": guests, "canvas": canvas, "face_px": heights},
        "people": {person: people[person] for person in students},
        "guest_pool": {person: people[person] for person in people if person not in students} | _strangers(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    described = folder / f"{name}.json"
    described.write_text(json.dumps(spec))
    tool = SHARED / "tools" / "make_sessions.py"
    subprocess.run([sys.executable, str(tool), str(described), str(folder)], check=True, stdout=subprocess.DEVNULL)
    return made


def _strangers() -> dict[str, list[Any]]:
    """Portraits of nasa_crews with the box of their face, each twice, since a guest may be in two photos."""
    from pipelines.resources.face_detector import FaceDetector

    found: dict[str, list[Any]] = {}
    detector = FaceDetector()
    for photo in sorted((SHARED / "data" / "faces" / "nasa_crews" / "portraits").glob("*.jpg")):
        faces = detector.detect(read_photo(photo.read_bytes(), photo.name, 150).pixels)
        if faces:
            box = max((face.box for face in faces), key=lambda box: box[2] * box[3])
            found[f"guest_{photo.stem}"] = [[str(photo), [round(side) for side in box]]] * 2
    return found


def _make_nasa_crews(folder: Path) -> None:
    """Every photo a session of its own: they were taken years apart."""
    source = SHARED / "data" / "faces" / "nasa_crews"
    shutil.copytree(source / "portraits", folder / ENROL)
    for photo in sorted((source / "images").glob("*.jpg")):
        (folder / photo.stem).mkdir()
        shutil.copyfile(photo, folder / photo.stem / photo.name)
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = _rows(source / "labels.csv")
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "file": f"{Path(row['file']).stem}/{row['file']}"} for row in rows)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def embed(place: Workplace, class_name: str) -> str:
    """Find and embed all faces of the class's photos and portraits; returns the vectors' version."""
    detection, (embedding, _) = place.detection(), place.embedding(MODEL)
    for folder in sorted((place.folder / "photos" / class_name).iterdir()):
        if folder.is_dir():
            key = SessionKey(class_name, folder.name)
            register_session_images(place.database, place.store, place.settings, key)
            detection.detect_session(key)
            embedding.embed_session(key)
    return embedding.version


def read_faces(place: Workplace, class_name: str, labels: Path, version: str) -> tuple[Faces, set[tuple[str, str]]]:
    """The faces that were found, with who they are by labels.csv, and (session, person) of all labels."""
    by_photo: dict[str, list[dict[str, str]]] = {}
    for row in _rows(labels):
        by_photo.setdefault(row["file"], []).append(row)
    rows: list[tuple[int, str, str, str | None]] = []
    vectors: dict[int, NDArray[np.float32]] = {}
    with place.database.connection() as connection:
        keys = [key for key in catalog.session_keys(connection) if key.class_name == class_name]
        for key in sorted(keys, key=lambda key: (not key.is_enrolment, key)):
            stored = crops.session_crops(connection, catalog.find_session(connection, key).id)
            ids = [row.id for row in stored]
            vectors |= zip(
                *crops.read_embeddings(connection, MODEL, version, ids, get_spec(MODEL).dimension), strict=True
            )
            for path in dict.fromkeys(row.path for row in stored):
                found = [row for row in stored if row.path == path]
                labelled = by_photo.get(path.removeprefix(f"{class_name}/"), [])
                people = {0: Path(path).stem} if key.is_enrolment else _labelled(labelled, found)
                rows += [(row.id, key.session_name, path, people.get(i)) for i, row in enumerate(found)]
    ids, sessions, photos, shown = (list(column) for column in zip(*rows, strict=True))
    portrayed = {person for person, session in zip(shown, sessions, strict=True) if session == ENROL}
    guests = [person not in portrayed for person in shown]
    faces = Faces(ids, np.stack([vectors[crop_id] for crop_id in ids]), sessions, photos, shown, guests)
    return faces, {(file.split("/")[0], row["identity"]) for file, of_file in by_photo.items() for row in of_file}


def _labelled(labels: list[dict[str, str]], found: list[crops.CropRow]) -> dict[int, str]:
    """Who the faces of a photo are, by their place in `found`."""
    boxes = np.array([[float(row[side]) for side in "xywh"] for row in labels]).reshape(-1, 4)
    pairs = match_boxes(boxes, np.array([row.face.box for row in found]).reshape(-1, 4))
    return {face: labels[label]["identity"] for label, face in pairs}


def grouping(faces: Faces, names: Names) -> tuple[float, float, float, float]:
    """BCubed precision, recall and F, and the F of pairs, over the labelled faces; nobody's is a group of its own."""
    groups = [(i, None) if name is None else name for i, name in enumerate(names)]
    labelled = [(group, person) for group, person in zip(groups, faces.people, strict=True) if person is not None]
    score = bcubed(*zip(*labelled, strict=True))

    def pairs(counts: Counter[Any]) -> int:
        return sum(count * (count - 1) // 2 for count in counts.values())

    right = pairs(Counter(labelled))
    said, true = pairs(Counter(g for g, _ in labelled)), pairs(Counter(person for _, person in labelled))
    return score.precision, score.recall, score.f1, 2 * right / (said + true) if said + true else 1.0


def stability(faces: Faces, before: Names, after: Names, keeps_names: bool) -> float:
    """The share of the faces with a name before the last session that have the same one after it."""
    from scipy.optimize import linear_sum_assignment

    last = max(faces.sessions)
    now = [name for name, session in zip(after, faces.sessions, strict=True) if session != last]
    both = [(old, new) for old, new in zip(before, now, strict=True) if old is not None]
    if keeps_names or not both:
        return sum(old == new for old, new in both) / max(len(both), 1)
    old_names, old = np.unique([str(o) for o, _ in both], return_inverse=True)
    new_names, new = np.unique([str(n) for _, n in both], return_inverse=True)
    shared = np.zeros((len(old_names), len(new_names)))
    np.add.at(shared, (old, new), [n is not None for _, n in both])
    return float(shared[linear_sum_assignment(shared, maximize=True)].sum()) / len(both)


def recognition(faces: Faces, names: Names, truth: set[tuple[str, str]]) -> list[str]:
    """Attendance precision and recall, guests accepted, shares of students' faces with the right and a wrong name."""
    said = {(session, str(name)) for session, name in zip(faces.sessions, names, strict=True) if name is not None}
    precision, recall = precision_recall(said, truth)
    guests = [name for name, guest in zip(names, faces.guests, strict=True) if guest]
    students = [(n, p) for n, p, guest in zip(names, faces.people, faces.guests, strict=True) if not guest]
    right = sum(name == person for name, person in students)
    wrong = sum(name not in (None, person) for name, person in students)
    accepted = sum(name is not None for name in guests)
    return [
        *(f"{precision:.3f}", f"{recall:.3f}", f"{accepted} of {len(guests)}"),
        *(f"{right} ({right / max(len(students), 1):.0%})", f"{wrong}"),
    ]


def clustered(cluster: Callable[[NDArray[np.float32]], Iterable[int]]) -> Callable[[Faces], Answers]:
    """A way that puts all faces into clusters (-1: into none), and names one after the portraits in it.

    Of several portraits the one nearest to the cluster's mean counts; of a cluster without one nobody is named.
    """

    def answer(faces: Faces) -> Answers:
        def alone(part: Faces) -> Names:
            return [None if label < 0 else int(label) for label in cluster(part.vectors)]

        labels = np.array(list(cluster(faces.vectors)))
        names: dict[int, tuple[float, str | None]] = {-1: (2.0, None)}
        for i in (i for i, session in enumerate(faces.sessions) if session == ENROL and labels[i] >= 0):
            mean = faces.vectors[labels == labels[i]].mean(axis=0)
            nearness = float(cosine_similarity_matrix(faces.vectors[[i]], mean[None])[0, 0])
            names[labels[i]] = max(names.get(labels[i], (-2.0, None)), (nearness, faces.people[i]), key=lambda n: n[0])
        seen = faces.without_portraits()
        found = [None if label < 0 else int(label) for label in labels[len(faces.ids) - len(seen.ids) :]]
        named = [names.get(-1 if label is None else label, (0.0, None))[1] for label in found]
        return Answers(alone(seen), alone(seen.before_the_last_session()), named, found)

    return answer


def fifty_clusters(vectors: NDArray[np.float32]) -> Iterable[int]:
    """The original's: average linkage with a fixed number of clusters, whoever is there."""
    from sklearn.cluster import AgglomerativeClustering

    count = min(50, len(vectors))
    return AgglomerativeClustering(n_clusters=count, metric="cosine", linkage="average").fit(vectors).labels_


def dbscan_photoprism(vectors: NDArray[np.float32]) -> Iterable[int]:
    """PhotoPrism's: DBSCAN with four faces to a core, and a radius of 0.64 where FaceNet's normalised threshold is 0.8."""
    from sklearn.cluster import DBSCAN

    return DBSCAN(eps=0.64 / 0.8 * 0.4, min_samples=4).fit(vectors).labels_


def immich(vectors: NDArray[np.float32]) -> Iterable[int]:
    """Immich's: DBSCAN one face at a time. Three within the greatest distance make a core, which is a new person unless
    one of them, or the nearest with a person, has one; the others come last and join the nearest person. The greatest
    distance is a setting; here it is the model's verification threshold.
    """
    similarity = cosine_similarity_matrix(vectors, vectors)
    near = similarity >= 1 - get_spec(MODEL).verification_threshold
    labels = np.full(len(vectors), -1)
    core = near.sum(axis=1) >= 3
    for face in [*np.flatnonzero(core), *np.flatnonzero(~core)]:
        having = np.flatnonzero(near[face] & (labels >= 0))
        if len(having):
            labels[face] = labels[having[similarity[face, having].argmax()]]
        elif core[face]:
            labels[face] = labels.max() + 1
    return labels


def chinese_whispers(vectors: NDArray[np.float32]) -> Iterable[int]:
    """dlib's: chinese_whispers_clustering at 0.5, as in its face_clustering.py."""
    import dlib

    return dlib.chinese_whispers_clustering([dlib.vector(v) for v in (vectors * DLIB_LENGTH).tolist()], 0.5)


def hdbscan_recognize(vectors: NDArray[np.float32]) -> Iterable[int]:
    """That of Recognize for Nextcloud: HDBSCAN with six faces to a cluster and four to a core distance."""
    from sklearn.cluster import HDBSCAN

    if len(vectors) < 6:
        return np.full(len(vectors), -1)
    return HDBSCAN(min_cluster_size=6, min_samples=4, copy=True).fit(vectors * DLIB_LENGTH).labels_


def nearest_neighbours(k: int) -> Callable[[Faces], Answers]:
    """The original's assignment: the majority of the k nearest faces with a name, from a calibrated similarity of 0.6 on.

    Session after session, and once more for the faces that were left over; who was named before has a vote.
    """
    threshold = 1 - distance_for(0.6, "calibrated", get_spec(MODEL).verification_threshold)

    def answer(faces: Faces) -> Answers:
        names = [p if s == ENROL else None for p, s in zip(faces.people, faces.sessions, strict=True)]
        students = sorted({str(name) for name in names if name is not None})
        for session in 2 * sorted(set(faces.sessions) - {ENROL}):
            gallery = [i for i, name in enumerate(names) if name is not None]
            probes = [i for i, other in enumerate(faces.sessions) if other == session and names[i] is None]
            if not probes:
                continue
            similarity = cosine_similarity_matrix(faces.vectors[probes], faces.vectors[gallery])
            of_gallery = np.array([students.index(str(names[i])) for i in gallery])
            for probe, found in zip(probes, knn_votes(similarity, of_gallery, k, threshold, "majority"), strict=True):
                names[probe] = students[found[0].student] if found and found[0].votes else None
        named = names[len(names) - len(faces.without_portraits().ids) :]
        return Answers(None, None, named, named)

    return answer


OTHERS: Mapping[str, Callable[[Faces], Answers]] = {
    "original: 50 clusters": clustered(fifty_clusters),
    "original: nearest at 0.6": nearest_neighbours(1),
    "original: vote of 5 at 0.6": nearest_neighbours(5),
    "DBSCAN as in Immich": clustered(immich),
    "DBSCAN as in PhotoPrism": clustered(dbscan_photoprism),
    "Chinese whispers, dlib": clustered(chinese_whispers),
    "HDBSCAN as in Recognize": clustered(hdbscan_recognize),
}


def ours(place: Workplace, class_name: str, version: str, faces: Faces) -> Answers:
    """The services: all sessions, one after another and once more, without the portraits; then, from nothing, with them."""
    seen = faces.without_portraits()
    sessions = sorted(set(seen.sessions))

    def process(*names: str) -> None:
        for key in (SessionKey(class_name, name) for name in names):
            SessionClusteringService(place.database, MODEL, version).cluster_session(key, ClusteringConfig())
            SessionAssignmentService(place.database, MODEL, version).assign_session(key, AssignmentConfig())

    def names_now(part: Faces, *, students_only: bool) -> Names:
        with place.database.connection() as connection:
            rows = connection.execute(
                """SELECT a.crop_id, st.name, st.provisional FROM assignments a JOIN students st ON st.id = a.student_id
                WHERE a.model = %s AND a.state = 'assigned' AND a.crop_id = ANY(%s)""",
                [MODEL, part.ids],
            ).fetchall()
        said = {crop_id: name for crop_id, name, provisional in rows if not (students_only and provisional)}
        return [said.get(crop_id) for crop_id in part.ids]

    with _without_portraits(place, class_name):
        process(*sessions[:-1], *sessions[:-1])
        before = names_now(seen.before_the_last_session(), students_only=False)
        process(*sessions[-1:], *sessions)
        alone = names_now(seen, students_only=False)
    process(ENROL, *sessions, *sessions)
    named, groups = names_now(seen, students_only=True), names_now(seen, students_only=False)
    return Answers(alone, before, named, groups, keeps_names=True)


@contextmanager
def _without_portraits(place: Workplace, class_name: str) -> Iterator[None]:
    """The class as if nobody had given portraits; afterwards it is as it was before, and nobody has been processed."""
    with place.database.connection() as connection:
        class_id = catalog.find_class(connection, class_name)
        connection.execute("""CREATE TABLE put_away AS SELECT d.* FROM decisions d WHERE d.class_id = %s""", [class_id])
        connection.execute("DELETE FROM decisions WHERE class_id = %s", [class_id])
    yield
    with place.database.connection() as connection:
        connection.execute("DELETE FROM clusters WHERE class_id = %s", [class_id])
        connection.execute(
            """DELETE FROM assignments a USING face_crops f, images i, sessions s
            WHERE f.id = a.crop_id AND i.id = f.image_id AND s.id = i.session_id AND s.class_id = %s""",
            [class_id],
        )
        connection.execute("DELETE FROM students WHERE class_id = %s AND provisional", [class_id])
        connection.execute("INSERT INTO decisions OVERRIDING SYSTEM VALUE SELECT * FROM put_away")
        connection.execute("DROP TABLE put_away")


if __name__ == "__main__":
    main()
