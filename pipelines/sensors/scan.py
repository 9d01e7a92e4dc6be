"""What a tick of the session images sensor decides, as a pure function of the listing and of what it remembers."""

import base64
import json
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pipelines.partitions import ENROL, SessionKey, parse_session_key
from pipelines.resources.photo_store import BadFolder, Listing, PhotoFile, fingerprint

CURSOR_VERSION = 1
REQUESTS_PER_TICK = 25
_NAMES_SHOWN = 5


class Known(NamedTuple):
    """What is remembered of one session.

    seen, files: fingerprint and number of its files at the last tick that saw it.
    revision: when (seconds since the epoch) it last changed without growing; 0 for never.
    requested, enrolment: versions of the session and of its class's enrolment in the last request; "" for none.
    """

    seen: str
    files: int
    revision: int = 0
    requested: str = ""
    enrolment: str = ""

    @property
    def version(self) -> str:
        """Names the session's content in run keys, each of which Dagster runs once.

        A session that returns to an earlier content (a photo added, then removed) has its old fingerprint again and
        would never be run for it; on such a way it must once have changed without growing, hence the revision.
        """
        return f"{self.seen}-{self.revision:x}" if self.revision else self.seen


@dataclass(frozen=True)
class State:
    """What the sensor remembers between ticks: sessions by key, and the bad folders already reported.

    A session that disappears is remembered: when its disk is mounted again nothing about it is new.
    """

    sessions: dict[str, Known] = field(default_factory=dict)
    reported: frozenset[str] = frozenset()


class SessionRequest(NamedTuple):
    """A session to process, with the versions of its photos and of its class's enrolment ("" for none)."""

    key: SessionKey
    version: str
    enrolment: str


@dataclass(frozen=True)
class ScanResult:
    """waiting: sessions with something new whose turn has not come; bad_folders: those to report now."""

    requests: list[SessionRequest]
    waiting: list[SessionKey]
    bad_folders: list[BadFolder]
    state: State


def encode(state: State) -> str:
    """The state as a cursor: about 20 bytes a session."""
    content = {"version": CURSOR_VERSION, "sessions": state.sessions, "reported": sorted(state.reported)}
    return base64.b64encode(zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9)).decode()


def decode(cursor: str) -> State:
    """The inverse of `encode`; raises ValueError for anything else, an older version's cursor included."""
    try:
        content = json.loads(zlib.decompress(base64.b64decode(cursor, validate=True)))
        if content["version"] != CURSOR_VERSION:
            raise ValueError(f"it has version {content['version']}")
        sessions = {key: Known(*row) for key, row in content["sessions"].items()}
        return State(sessions, frozenset(content["reported"]))
    except (zlib.error, KeyError, TypeError, AttributeError) as error:
        raise ValueError("it is damaged") from error


def diff(
    listing: Listing,
    state: State,
    now: float,
    settle_seconds: float,
    running: Collection[str] = (),
    blocked: Collection[str] = (),
    processed: Collection[SessionKey] = (),
    budget: int = REQUESTS_PER_TICK,
) -> ScanResult:
    """Compare the photo root with what is remembered, and decide what to process.

    now: seconds since the epoch. running: keys of enrolment sessions whose runs have not finished.
    blocked: names of classes that cannot be processed now; their sessions stay due.
    processed: sessions that somebody else has had processed as they are now; they are remembered as requested.
    budget: most requests of one tick; the others stay due.

    A class's enrolment comes before its other sessions, and they wait until its run has finished: otherwise people
    about to be named would first become provisional students. When it changes they are due again, since new
    portraits give names to faces.
    """
    known = dict(state.sessions)
    settled: dict[SessionKey, bool] = {}
    files_of = by_session(listing)
    # The last photo of a known session was removed. A folder that is gone altogether says nothing.
    files_of |= {key: [] for key in listing.sessions if key not in files_of and str(key) in known}
    for key, files in files_of.items():
        known[str(key)], settled[key] = _observe(files, known.get(str(key)), now, settle_seconds)

    due: list[SessionRequest] = []
    waiting: list[SessionKey] = []
    # An enrolment first, for what becomes of it decides about the others.
    for key, is_settled in sorted(settled.items(), key=lambda item: not item[0].is_enrolment):
        session, enrolment, is_enrolled = known[str(key)], "", True
        if not key.is_enrolment:
            enrol_key = SessionKey(key.class_name, ENROL)
            if enrol := known.get(str(enrol_key)):
                enrolment = enrol.requested
                is_requested = enrol_key not in settled or enrolment == enrol.version
                is_enrolled = is_requested and str(enrol_key) not in running
        if (session.version, enrolment) != (session.requested, session.enrolment):
            if key in processed and is_enrolled:
                known[str(key)] = session._replace(requested=session.version, enrolment=enrolment)
            elif is_settled and is_enrolled and key.class_name not in blocked:
                due.append(SessionRequest(key, session.version, enrolment))
            else:
                waiting.append(key)

    # New photos go before photos whose class has new portraits only.
    due.sort(key=lambda new: (not new.key.is_enrolment, known[str(new.key)].requested == new.version, new.key))
    for key, version, enrolment in due[:budget]:
        known[str(key)] = known[str(key)]._replace(requested=version, enrolment=enrolment)
    bad_folders = [*listing.bad_folders, *missing_sessions(listing, map(parse_session_key, known))]
    return ScanResult(
        requests=due[:budget],
        waiting=sorted([*waiting, *(request.key for request in due[budget:])]),
        bad_folders=[folder for folder in bad_folders if folder.path not in state.reported],
        state=State(known, frozenset(folder.path for folder in bad_folders)),
    )


def by_session(listing: Listing) -> dict[SessionKey, list[PhotoFile]]:
    """Files of every session that has a photo; its session.yaml counts, since a new date is something new."""
    files = defaultdict(list)
    for photo in listing.photos:
        files[SessionKey(photo.class_name, photo.session_name)].append(photo)
    for file in listing.session_files:
        key = SessionKey(file.class_name, file.session_name)
        if key in files:
            files[key].append(file)
    return files


def content_fingerprints(seen: Mapping[SessionKey, str], configuration: str) -> dict[SessionKey, str]:
    """What each session's run is about, for FINGERPRINT_TAG: its files, its class's portraits, and the settings.

    seen: the fingerprint of each session's files. configuration: names the settings that change what is found, so that a changed one makes every session new. New
    portraits make a class's sessions new too, for they give names to faces. The model is no part of it: a class that
    has switched its model was processed by the new one before.
    """
    none = fingerprint([])
    portraits = {key.class_name: content for key, content in seen.items() if key.is_enrolment and content != none}
    return {key: f"{content}:{portraits.get(key.class_name, '')}:{configuration}" for key, content in seen.items()}


def missing_sessions(listing: Listing, known: Iterable[SessionKey]) -> list[BadFolder]:
    """For each class of the listing, which of the known sessions have no folder any more, as one."""
    there, of_class = set(listing.sessions), defaultdict(list)
    for key in sorted(set(known) - there):
        of_class[key.class_name].append(key.session_name)
    missing = []
    # A class that is gone altogether has been moved, or its disk has.
    for name in sorted(of_class.keys() & {key.class_name for key in there}):
        names = of_class[name]
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
        reason = (
            f"The class {name!r} has no folder any more for {len(names)} of its sessions ({shown}), and what was found "
            "there still counts: put the folder back, or an empty one in its place, and the faces no longer count."
        )
        missing.append(BadFolder(f"{name}/ lacks {len(names)}", reason))
    return missing


def _observe(files: list[PhotoFile], before: Known | None, now: float, settle_seconds: float) -> tuple[Known, bool]:
    """What to remember of a session, and whether its files are complete."""
    seen = fingerprint(files)
    if before is None:
        session = Known(seen, len(files))
    elif before.seen == seen:
        session = before
    else:
        revision = before.revision if len(files) > before.files else int(now)
        session = before._replace(seen=seen, files=len(files), revision=revision)

    if any(file.modified is not None and now - settle_seconds < file.modified <= now for file in files):
        return session, False
    unchanged = before is not None and before.seen == seen
    # As many files as before, but others: one is being written by a machine whose clock is behind.
    rewritten = before is not None and not unchanged and before.files == len(files)
    # No time, or one to come (a camera with a wrong clock), tells nothing: two ticks must see the same.
    tells_nothing = any(file.modified is None or file.modified > now for file in files)
    return session, unchanged or not (rewritten or tells_nothing)
