"""The pure part of the session images sensor, against a simulated photo root."""

import time
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from pipelines.partitions import ENROL, SessionKey, parse_session_key
from pipelines.resources.photo_store import BadFolder, Listing, PhotoFile, fingerprint
from pipelines.sensors.scan import Known, ScanResult, State, decode, diff, encode

NOW = 1_800_000_000.0
SETTLE = 5.0
OLD = NOW - 1000


def photo(key: str, name: str = "a.jpg", *, modified: float | None = OLD, size: int = 9) -> PhotoFile:
    class_name, session_name = parse_session_key(key)
    return PhotoFile(class_name, session_name, f"{class_name}/{session_name}/{name}", None, size, modified)


def look(*photos: PhotoFile, state: State | None = None, now: float = NOW, **options) -> ScanResult:
    """A tick that sees these photos."""
    return diff(Listing(list(photos)), state or State(), now, SETTLE, **options)


def keys(result: ScanResult) -> list[str]:
    return [str(request.key) for request in result.requests]


def test_a_new_session_is_requested_once() -> None:
    first = look(photo("math__mon"), photo("art__tue"))
    assert keys(first) == ["art__tue", "math__mon"]
    assert first.requests[1].version == fingerprint([photo("math__mon")])
    second = look(photo("math__mon"), photo("art__tue"), state=first.state, now=NOW + 30)
    assert (second.requests, second.waiting) == ([], [])


def test_new_photos_in_a_known_session_request_it_again() -> None:
    state = look(photo("math__mon")).state
    assert keys(look(photo("math__mon"), photo("math__mon", "b.jpg"), state=state, now=NOW + 30)) == ["math__mon"]


def test_a_new_session_date_requests_the_session_but_is_no_session_by_itself() -> None:
    session_file = photo("math__mon", "session.yaml")
    state = look(photo("math__mon")).state
    with_date = diff(Listing([photo("math__mon")], [session_file]), state, NOW + 30, SETTLE)
    assert keys(with_date) == ["math__mon"]
    assert keys(diff(Listing([], [session_file]), State(), NOW, SETTLE)) == []


def test_a_young_photo_makes_its_whole_session_wait_until_it_settles() -> None:
    photos = photo("math__mon"), photo("math__mon", "b.jpg", modified=NOW - 1), photo("math__tue")
    first = look(*photos)
    assert (keys(first), first.waiting) == (["math__tue"], [SessionKey("math", "mon")])
    second = look(*photos, state=first.state, now=NOW + 30)
    assert (keys(second), second.waiting) == (["math__mon"], [])


def test_a_file_that_changes_between_ticks_is_being_written_whatever_its_time_says() -> None:
    state = look(photo("math__mon")).state
    growing = look(photo("math__mon", size=10), state=state, now=NOW + 30)
    assert (keys(growing), growing.waiting) == ([], [SessionKey("math", "mon")])
    still = look(photo("math__mon", size=11), state=growing.state, now=NOW + 60)
    assert keys(still) == []
    assert keys(look(photo("math__mon", size=11), state=still.state, now=NOW + 90)) == ["math__mon"]


@pytest.mark.parametrize("modified", [None, NOW + 3600], ids=["no time", "a time to come"])
def test_where_times_tell_nothing_two_ticks_must_see_the_same(modified: float | None) -> None:
    first = look(photo("math__mon", modified=modified))
    assert (keys(first), first.waiting) == ([], [SessionKey("math", "mon")])
    assert keys(look(photo("math__mon", modified=modified), state=first.state, now=NOW + 30)) == ["math__mon"]


def test_a_removed_photo_is_noticed_and_a_removed_session_is_left_alone() -> None:
    two = photo("math__mon"), photo("math__mon", "b.jpg")
    state = look(*two, photo("math__tue")).state
    result = look(two[0], state=state, now=NOW + 30)
    assert keys(result) == ["math__mon"]
    back = look(two[0], photo("math__tue"), state=result.state, now=NOW + 60)
    assert (back.requests, back.waiting) == ([], [])


def test_a_session_that_returns_to_earlier_photos_is_requested_under_another_version() -> None:
    state, versions = State(), []
    one = [photo("math__mon")]
    two = [*one, photo("math__mon", "b.jpg")]
    for tick, photos in enumerate([one, two, one, two, one]):
        result = look(*photos, state=state, now=NOW + 30 * tick)
        state = result.state
        versions += [request.version for request in result.requests]
    assert len(versions) == len(set(versions)) == 5


def test_only_so_many_are_requested_in_a_tick_and_the_rest_later() -> None:
    photos = [photo(f"math__s{index:02d}") for index in range(7)]
    state, requested, counts = State(), [], []
    for tick in range(4):
        result = look(*photos, state=state, now=NOW + 30 * tick, budget=3)
        state = result.state
        requested += keys(result)
        counts.append((len(result.requests), len(result.waiting)))
    assert counts == [(3, 4), (3, 1), (1, 0), (0, 0)]
    assert requested == sorted(set(requested))


def test_enrolment_comes_first_and_the_class_waits_for_its_run() -> None:
    photos = photo("math__enrol", "Ana.jpg"), photo("math__mon"), photo("art__mon")
    first = look(*photos)
    assert keys(first) == ["math__enrol", "art__mon"]
    running = look(*photos, state=first.state, now=NOW + 30, running={"math__enrol"})
    assert (keys(running), running.waiting) == ([], [SessionKey("math", "mon")])
    finished = look(*photos, state=running.state, now=NOW + 60)
    assert keys(finished) == ["math__mon"]
    assert finished.requests[0].enrolment == first.requests[0].version


def test_new_portraits_request_the_class_again_after_their_run() -> None:
    portrait, monday, art = photo("math__enrol", "Ana.jpg"), photo("math__mon"), photo("art__mon")
    state = look(portrait, monday, art).state
    state = look(portrait, monday, art, state=state, now=NOW + 30).state
    photos = portrait, photo("math__enrol", "Ben.jpg"), monday, art

    enrolment = look(*photos, state=state, now=NOW + 60)
    assert keys(enrolment) == ["math__enrol"]
    running = look(*photos, state=enrolment.state, now=NOW + 90, running={"math__enrol"})
    assert keys(running) == []
    finished = look(*photos, state=running.state, now=NOW + 120)
    assert keys(finished) == ["math__mon"]
    assert finished.requests[0].enrolment == enrolment.requests[0].version

    without_enrolment = look(monday, art, state=finished.state, now=NOW + 150)
    assert keys(without_enrolment) == []


def test_a_portrait_still_being_written_makes_the_class_wait() -> None:
    result = look(photo("math__enrol", "Ana.jpg", modified=NOW - 1), photo("math__mon"))
    assert (keys(result), result.waiting) == ([], [SessionKey("math", ENROL), SessionKey("math", "mon")])


def test_new_photos_go_before_sessions_that_have_new_portraits_only() -> None:
    photos = photo("art__enrol"), photo("art__mon"), photo("art__tue")
    state = look(*photos).state
    state = look(*photos, state=state, now=NOW + 30).state
    photos = *photos, photo("art__enrol", "Ben.jpg")
    state = look(*photos, state=state, now=NOW + 60).state
    result = look(*photos, photo("math__mon"), state=state, now=NOW + 90, budget=2)
    assert keys(result) == ["math__mon", "art__mon"]


def test_a_bad_folder_is_reported_once_until_it_was_mended() -> None:
    bad = BadFolder("math 101", "The class folder 'math 101' cannot be used: rename it.")
    first = diff(Listing(bad_folders=[bad]), State(), NOW, SETTLE)
    second = diff(Listing(bad_folders=[bad]), first.state, NOW, SETTLE)
    mended = diff(Listing(), second.state, NOW, SETTLE)
    again = diff(Listing(bad_folders=[bad]), mended.state, NOW, SETTLE)
    assert [result.bad_folders for result in (first, second, mended, again)] == [[bad], [], [], [bad]]


# --- the cursor

versions = st.text("0123456789abcdef-", max_size=27)
states = st.builds(
    State,
    st.dictionaries(
        st.text(), st.builds(Known, versions, st.integers(0, 9999), st.integers(0, 2**33), versions, versions)
    ),
    st.frozensets(st.text(st.characters(exclude_categories=["Cs"]))),
)


@given(state=states)
def test_the_cursor_gives_the_state_back(state: State) -> None:
    assert decode(encode(state)) == state


@given(state=states, place=st.floats(0, 1, exclude_max=True), damage=st.sampled_from(["cut", "flip", "text"]))
def test_a_damaged_cursor_is_noticed(state: State, place: float, damage: str) -> None:
    cursor = encode(state)
    at = int(place * len(cursor))
    if damage == "cut":
        damaged = cursor[:at]
    elif damage == "flip":
        damaged = f"{cursor[:at]}{'A' if cursor[at] != 'A' else 'B'}{cursor[at + 1 :]}"
    else:
        damaged = f"{cursor[:at]}é{cursor[at:]}"
    try:
        # A flip in the unused bits of base64's last character changes nothing.
        assert decode(damaged) == state
    except ValueError:
        return
    assert damage == "flip"


@pytest.mark.parametrize("cursor", ["12345", "{}", "null", "e30=", encode(State())[:-4]])
def test_something_else_is_no_cursor(cursor: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(cursor)


def test_thousands_of_sessions_need_a_small_cursor_and_a_short_time() -> None:
    photos = [
        photo(f"class_{c:02d}__2026-01-{s:02d}", f"{i}.jpg", modified=OLD - c * s * i)
        for c in range(40)
        for s in range(50)
        for i in range(10)
    ]
    started = time.process_time()
    state = look(*photos, budget=2000).state
    cursor = encode(state)
    assert look(*photos, state=decode(cursor), now=NOW + 30).requests == []
    assert time.process_time() - started < 5
    assert len(cursor) < 2000 * 30


# --- everything together


@dataclass(frozen=True)
class Seen:
    """What a run would find: a session's files, and its class's portraits as last processed."""

    files: frozenset[PhotoFile]
    portraits: frozenset[PhotoFile] | None


class Watching(RuleBasedStateMachine):
    """Files come, grow, go and come back while the sensor ticks and runs finish."""

    sessions = st.sampled_from(["math__mon", "math__tue", f"math__{ENROL}", "art__mon"])
    names = st.sampled_from(["a.jpg", "b.jpg", "c.jpg"])
    ages = st.sampled_from([6.0, 5000.0, 3.0, None, -3600.0])

    @initialize(budget=st.integers(1, 4))
    def start(self, budget: int) -> None:
        self.budget = budget
        self.now = NOW
        self.files: dict[tuple[str, str], PhotoFile] = {}
        self.history: list[dict] = []
        self.seen: dict[str, frozenset[PhotoFile]] = {}
        self.cursor = encode(State())
        self.requested: set[tuple] = set()
        self.processed: dict[str, Seen] = {}
        self.running: set[str] = set()

    @rule(key=sessions, name=names, age=ages, size=st.integers(1, 3))
    def write(self, key: str, name: str, age: float | None, size: int) -> None:
        self.files[key, name] = photo(key, name, modified=None if age is None else self.now - age, size=size)

    @rule(key=sessions, name=names)
    def grow(self, key: str, name: str) -> None:
        if file := self.files.get((key, name)):
            self.files[key, name] = replace(file, size=file.size + 1)

    @rule(key=sessions, name=names)
    def remove(self, key: str, name: str) -> None:
        self.files.pop((key, name), None)

    @rule(key=sessions)
    def remove_session(self, key: str) -> None:
        self.files = {place: file for place, file in self.files.items() if place[0] != key}

    @rule(back=st.integers(1, 3))
    def return_to_earlier_files(self, back: int) -> None:
        self.files = dict(self.history[-back:][0]) if self.history else {}

    @rule()
    def finish_runs(self) -> None:
        self.running.clear()

    def content(self, key: str) -> frozenset[PhotoFile]:
        return frozenset(file for place, file in self.files.items() if place[0] == key)

    @rule(seconds=st.sampled_from([1, 4, 30]))
    def tick(self, seconds: float) -> None:
        self.look(seconds)

    def look(self, seconds: float) -> ScanResult:
        self.now += seconds
        self.history.append(dict(self.files))
        running = set(self.running)
        listing = Listing(list(self.files.values()))
        result = diff(listing, decode(self.cursor), self.now, SETTLE, running, budget=self.budget)
        self.cursor = encode(result.state)
        assert len(result.requests) <= self.budget
        for request in result.requests:
            assert request not in self.requested
            self.requested.add(request)
            key, enrolment = str(request.key), f"{request.key.class_name}__{ENROL}"
            files = self.content(key)
            assert files
            assert not any(f.modified is not None and self.now - SETTLE < f.modified <= self.now for f in files)
            if any(f.modified is None or f.modified > self.now for f in files):
                assert files == self.seen.get(key)
            portraits = None
            if not request.key.is_enrolment:
                assert enrolment not in running
                # Portraits whose folder is gone stay as they were last processed.
                if enrolment in self.processed:
                    portraits = self.processed[enrolment].files
                if self.content(enrolment):
                    assert portraits == self.content(enrolment)
            else:
                self.running.add(key)
            self.processed[key] = Seen(files, portraits)
        self.seen |= {key: self.content(key) for key, _ in self.files}
        return result

    def teardown(self) -> None:
        """When nothing changes any more, everything that is there is processed, with the portraits there are."""
        for _ in range(40):
            self.running.clear()
            result = self.look(3600)
            if not result.requests and not result.waiting:
                break
        assert (result.requests, result.waiting) == ([], [])
        for key in {place[0] for place in self.files}:
            assert self.processed[key].files == self.content(key)
            portraits = self.content(f"{parse_session_key(key).class_name}__{ENROL}")
            if portraits and not key.endswith(ENROL):
                assert self.processed[key].portraits == portraits


TestWatching = Watching.TestCase
TestWatching.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
