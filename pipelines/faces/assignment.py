"""Matching faces with a gallery of known people: k nearest neighbours, then one face per student and photo.

A face may also stand for several of one person: what is said of faces here holds for the people of a session too, each
with the photos that show them.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Candidate(NamedTuple):
    """A student that a face may show.

    votes: gallery crops that voted for the student; 0 for the nearest student without a vote, who is kept to tell how
    clear the vote was. similarity: mean cosine similarity of those crops (of the nearest crop where votes is 0).
    best_similarity: cosine similarity of the student's nearest gallery crop.
    """

    student: int
    votes: int
    similarity: float
    best_similarity: float


@dataclass(frozen=True)
class Decision:
    """What was decided about one face.

    state: assigned; no_match (nobody in the gallery is near enough); needs_review (`student` is a proposal).
    student: None for no_match only. similarity, votes: the student's best cosine similarity and votes.
    runner_up: the nearest other student of the face's whole gallery, however far; None where there is no other.
    margin: similarity minus runner_up_similarity; negative where the runner-up is nearer.
    """

    state: Literal["assigned", "no_match", "needs_review"]
    student: int | None = None
    similarity: float | None = None
    votes: int = 0
    runner_up: int | None = None
    runner_up_similarity: float | None = None
    margin: float | None = None


def knn_votes(
    similarity: NDArray[np.floating[Any]],
    gallery_students: NDArray[np.int64],
    k: int,
    threshold: float,
    voting: Literal["majority", "equal_ballots", "best"] = "equal_ballots",
) -> list[list[Candidate]]:
    """For every face the students it may show, the likeliest first, then the nearest student without a vote.

    similarity: (n, m) cosine similarities of n faces and m gallery crops; gallery_students: (m,) whose crops they are.
    An entry of -inf takes a crop out of the gallery for that face, whatever the threshold; a person who has said "not
    this student" takes out all crops of that student. k: at least 1.

    Gallery crops with a similarity of at least `threshold` compete; of those the k nearest have one vote each (of
    equally near ones those of the lower student id). Most votes win; ties go to the higher mean similarity of the
    votes, then to the lower student id. That is voting "majority".

    "equal_ballots": one student, one ballot. A student with twenty crops could fill all k places and outvote the
    nearest crop of a student who has a single portrait. So nobody casts more votes than the smallest gallery among the
    students competing for that face allows. Against a single portrait this is the best match; among well-known students
    it is the usual majority. (Dividing votes by gallery size instead lets a portrait at rank k, with 1 vote of 1, beat
    4 of 20.) "best": everybody has one vote, so the best match wins.

    Cover and Hart, "Nearest neighbor pattern classification", 1967. Independent of the order of faces and gallery.
    """
    if not len(gallery_students):
        return [[] for _ in similarity]
    by_student = np.argsort(gallery_students, kind="stable")
    students, starts, sizes = np.unique(np.asarray(gallery_students)[by_student], return_index=True, return_counts=True)
    if (np.diff(gallery_students) < 0).any():  # copying ten million numbers takes longer than the whole vote
        similarity = np.take(similarity, by_student, axis=1)
    best = np.maximum.reduceat(similarity, starts, axis=1)
    # The lowest finite number at least, so that -inf never reaches it.
    floor = np.full((len(best), 1), max(threshold, np.finfo(similarity.dtype).min), similarity.dtype)
    if voting == "equal_ballots":
        if similarity.min(initial=0) == -np.inf:
            sizes = np.add.reduceat(similarity > -np.inf, starts, axis=1, dtype=np.int64)
        ballots = np.min(np.broadcast_to(sizes, best.shape), axis=1, where=best >= floor, initial=k)
    else:
        ballots = np.full(len(similarity), k if voting == "majority" else 1)

    # No vote lies below the nearest crop of the k-th student: the nearest crops of k students alone fill the k places.
    if len(students) > k:
        floor = np.maximum(floor, np.partition(best, -k, axis=1)[:, -k, None])
    faces, columns = np.nonzero(best >= floor)
    crops = _nearest_crops(similarity, np.append(starts, len(by_student)), faces, columns, ballots.max(initial=1))
    pairs, ranks = np.nonzero((crops >= floor[faces]) & (np.arange(crops.shape[1]) < ballots[faces, None]))
    faces, columns, values = faces[pairs], columns[pairs], crops[pairs, ranks]
    nearest_first = np.lexsort((columns, -values, faces))
    faces, columns, values = faces[nearest_first], columns[nearest_first], values[nearest_first]
    counted = np.arange(len(faces)) - np.searchsorted(faces, faces) < k
    faces, columns, values = faces[counted], columns[counted], values[counted]
    votes: list[dict[int, list[float]]] = [{} for _ in similarity]
    for face, student, value in zip(faces.tolist(), students[columns].tolist(), values.tolist(), strict=True):
        votes[face].setdefault(student, []).append(value)

    best[faces, columns] = -np.inf
    others = best.argmax(axis=1)
    others_best = best[np.arange(len(best)), others]
    result = []
    for of_face, student, value in zip(votes, students[others].tolist(), others_best.tolist(), strict=True):
        candidates = [Candidate(s, len(v), sum(v) / len(v), v[0]) for s, v in of_face.items()]
        candidates.sort(key=lambda c: (-c.votes, -c.similarity, c.student))
        if value > -np.inf:
            candidates.append(Candidate(student, 0, value, value))
        result.append(candidates)
    return result


def _nearest_crops(
    similarity: NDArray[np.floating[Any]],
    bounds: NDArray[np.int64],
    faces: NDArray[np.int64],
    columns: NDArray[np.int64],
    count: int,
) -> NDArray[np.floating[Any]]:
    """Similarities of the nearest crops of pairs of a face and a student, the nearest first.

    similarity: (n, m), a student's crops side by side: those of student s from bounds[s] to bounds[s + 1]. faces,
    columns: (p,) the pairs. Returns (p, count), -inf where a student has fewer crops.
    """
    nearest = np.full((len(faces), count), -np.inf, similarity.dtype)
    by_student = np.argsort(columns, kind="stable")
    present, firsts = np.unique(columns[by_student], return_index=True)
    for student, pairs in zip(present.tolist(), np.split(by_student, firsts)[1:], strict=True):
        crops = similarity[faces[pairs], bounds[student] : bounds[student + 1]]
        kept = min(count, crops.shape[1])
        nearest[pairs, :kept] = np.partition(crops, -kept, axis=1)[:, -kept:]
    return -np.sort(-nearest, axis=1)


def candidates_beside_visitors(
    similarity: NDArray[np.floating[Any]],
    gallery_students: NDArray[np.int64],
    visitors: Collection[int],
    k: int,
    threshold: float,
    margin: float,
    voting: Literal["majority", "equal_ballots", "best"] = "equal_ballots",
) -> list[list[Candidate]]:
    """What `knn_votes` says of faces where part of the gallery are visitors: known people who are no students.

    visitors: which of gallery_students they are; margin as for `assign_people`, the rest as for `knn_votes`.

    Visitors have no vote among students: a face is a visitor's only where that is nearest (cosine similarity of at least
    `threshold`) and leads every student by `margin`. Where it does not, the nearest student comes first, with the visitor
    as runner-up, so that the face needs a review: a face must not be lost to a student whom it may well show. Faces that
    are nearer to a student are matched with the students alone, and the nearest visitor, where nearer than any other
    runner-up, tells how clear that is.
    """
    is_visitor = np.isin(gallery_students, list(visitors))
    if not is_visitor.any():
        return knn_votes(similarity, gallery_students, k, threshold, voting)
    students = knn_votes(similarity[:, ~is_visitor], gallery_students[~is_visitor], k, threshold, voting)
    absorbing = knn_votes(similarity[:, is_visitor], gallery_students[is_visitor], 1, threshold, "best")
    return [_beside_visitors(*found, margin) for found in zip(students, absorbing, strict=True)]


def _beside_visitors(students: list[Candidate], visitors: list[Candidate], margin: float) -> list[Candidate]:
    """The candidates of one face among students and among visitors in one list, whose first one is to be decided on."""
    nearest = max(students, key=lambda c: (c.best_similarity, -c.student), default=None)
    visitor = visitors[0] if visitors else None
    if visitor is None or not visitor.votes or (nearest and nearest.best_similarity > visitor.best_similarity):
        return [*students, *(v._replace(votes=0) for v in visitors)]
    if nearest and visitor.best_similarity - nearest.best_similarity < margin:
        return [nearest._replace(votes=1), visitor._replace(votes=0)]
    return [*visitors, *(s._replace(votes=0) for s in students)]


def assign_one_to_one(
    candidates: list[list[Candidate]],
    photo_ids: Iterable[int],
    margin: float,
    taken: Mapping[int, Collection[int]] | None = None,
) -> list[Decision]:
    """Decide every face, so that no photo shows one student twice: `assign_people` where each is in one photo."""
    return assign_people(candidates, [[photo] for photo in photo_ids], margin, taken)


def assign_people(
    candidates: list[list[Candidate]],
    photos: Sequence[Collection[int]],
    margin: float,
    taken: Mapping[int, Collection[int]] | None = None,
) -> list[Decision]:
    """Decide who each face is, or each person whose faces were taken together, so that no photo shows one student twice.

    candidates: from `knn_votes`, one list per face; photos: the photos that show each. margin: a first choice that leads
    the nearest other student by less (cosine similarity) needs a review. taken: students already assigned to another face
    of a photo, by photo id.

    Where several that share a photo have the same first choice, the most similar one keeps it; two that share no photo
    may both be that student. The others need a review, and so does one whose first choice is taken in any of its photos:
    a second detection, a poster or a twin never turns silently into another student. They are proposed the best
    one-to-one matching (by `best_similarity`) with those of their candidates that their photos do not show yet: Kuhn,
    "The Hungarian method for the assignment problem", 1955, with the option to reject a face, which is then proposed its
    first choice. Matched together are those that a chain of shared photos connects.

    Independent of the order of faces; of two faces with the very same candidates the earlier one counts as nearer.
    """
    decisions = [_decide("no_match", None, found, margin) for found in candidates]
    shown: dict[int, set[int]] = defaultdict(set, {photo: set(students) for photo, students in (taken or {}).items()})
    wanting = [face for face, found in enumerate(candidates) if found and found[0].votes]
    others = []
    for face in sorted(wanting, key=lambda face: (-candidates[face][0].best_similarity, candidates[face], face)):
        first = candidates[face][0]
        if any(first.student in shown[photo] for photo in photos[face]):
            others.append(face)
        else:
            for photo in photos[face]:
                shown[photo].add(first.student)
            decisions[face] = _decide("assigned", first, candidates[face], margin)
    for faces in _sharing_photos(others, photos):
        unavailable = [set().union(*(shown[photo] for photo in photos[face])) for face in faces]
        for face, proposal in zip(faces, _proposals([candidates[face] for face in faces], unavailable), strict=True):
            decisions[face] = _decide("needs_review", proposal, candidates[face], margin)
    return decisions


def _sharing_photos(faces: list[int], photos: Sequence[Collection[int]]) -> list[list[int]]:
    """The faces in parts, in the order given, so that no photo shows faces of two parts."""
    parts: list[tuple[set[int], list[int]]] = []
    for face in faces:
        own = set(photos[face])
        touched = [part for part in parts if part[0] & own]
        parts = [part for part in parts if not part[0] & own]
        merged = sorted((f for part in touched for f in part[1]), key=faces.index)
        parts.append((own.union(*(part[0] for part in touched)), [*merged, face]))
    return [members for _, members in parts]


def _proposals(candidates: list[list[Candidate]], unavailable: list[set[int]]) -> list[Candidate]:
    """One candidate for each face: none unavailable to it, each student once; or its first where that leaves none."""
    from scipy.optimize import linear_sum_assignment

    left = [
        {c.student: c for c in found if c.votes and c.student not in shown}
        for found, shown in zip(candidates, unavailable, strict=True)
    ]
    students = sorted({student for of_face in left for student in of_face})
    # One column per student and one per face for rejecting it, which is worse than any student that may be proposed.
    impossible, rejected = -9.0, -2.0
    gain = np.full((len(left), len(students) + len(left)), impossible)
    gain[:, len(students) :] = rejected
    for face, of_face in enumerate(left):
        for student, candidate in of_face.items():
            gain[face, students.index(student)] = candidate.best_similarity
    columns = linear_sum_assignment(gain, maximize=True)[1]
    return [
        left[face][students[column]] if column < len(students) else candidates[face][0]
        for face, column in enumerate(columns.tolist())
    ]


def _decide(
    state: Literal["assigned", "no_match", "needs_review"],
    chosen: Candidate | None,
    candidates: list[Candidate],
    margin: float,
) -> Decision:
    """The decision with its runner-up; a lead below `margin` turns assigned into needs_review."""
    rivals = [candidate for candidate in candidates if chosen is None or candidate.student != chosen.student]
    rival = max(rivals, key=lambda c: (c.best_similarity, -c.student), default=None)
    lead = chosen.best_similarity - rival.best_similarity if chosen and rival else None
    return Decision(
        state="needs_review" if state == "assigned" and lead is not None and lead < margin else state,
        student=chosen.student if chosen else None,
        similarity=chosen.best_similarity if chosen else None,
        votes=chosen.votes if chosen else 0,
        runner_up=rival.student if rival else None,
        runner_up_similarity=rival.best_similarity if rival else None,
        margin=lead,
    )
