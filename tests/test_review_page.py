"""The review page in a real browser, as a teacher uses it: by mouse, by keyboard alone, and when things go wrong."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import numpy as np
import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, Locator, Page, Route, expect

from pipelines.api.app import create_app
from pipelines.commands.common import current_user
from pipelines.database import catalog
from pipelines.demo_photos import CLASS_NAME, FACES
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.attendance import AttendanceService
from pipelines.services.decisions import DecisionService
from pipelines.settings import get_settings

PAGE_SECONDS = 15
SESSIONS = ("2026-09-07", "2026-09-14", "2026-09-21")
VIEWS = ("questions", "names", "students", "register", "log")

pytestmark = pytest.mark.slow


@pytest.fixture
def browser(open_browser) -> Iterator[Browser]:
    """A browser for each test, started after its photos are processed."""
    with open_browser() as browser:
        yield browser


@pytest.fixture
def review(database, tmp_path) -> Iterator[Callable[..., str]]:
    """Starts `attendansee review` over the test's database; returns the address that it says."""
    processes = []

    def start(class_name: str, **environment: str) -> str:
        process = subprocess.Popen(
            [sys.executable, "-c", "from pipelines.cli import main; main()", "review", class_name, "--port", "0"],
            env={**os.environ, "ATTENDANSEE_HOME": str(tmp_path), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        said = process.stdout.readline()
        found = re.fullmatch(r"Review page: (http://\S+) \(Ctrl-C stops it\)\n", said)
        assert found, said + process.stdout.read()
        return found[1]

    yield start
    for process in processes:
        process.terminate()
        said, _ = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "Stopped.\n")


@pytest.fixture
def show(browser) -> Iterator[Callable[..., Page]]:
    """Opens the page; whatever it logs, fails at, or asks another host for, fails the test."""
    expect.set_options(timeout=PAGE_SECONDS * 1000)
    complaints: list[str] = []
    contexts = []

    def open_page(url: str, width: int = 1280, expected: str = "(?!)", **options) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PAGE_SECONDS * 1000)

        def complain(text: str) -> None:
            if not re.search(expected, text):
                complaints.append(text)

        page.on("pageerror", lambda error: complain(str(error)))
        page.on("console", lambda message: complain(message.text))
        page.on(
            "request",
            lambda request: (
                urlsplit(request.url).scheme in ("blob", "data")
                or urlsplit(request.url).netloc == urlsplit(url).netloc
                or complain(request.url)
            ),
        )
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def unnamed(detect, database) -> None:
    """The demo's class after its three sessions: seven people, nobody with a name."""
    first, second, third = map(detect, SESSIONS)
    with TestClient(create_app(get_settings()), base_url="http://127.0.0.1") as client:
        for session_id, operations in (
            (first, ["cluster-crops"]),
            (second, ["assign-crops"]),
            (third, ["assign-crops", "cluster-crops"]),
        ):
            for operation in operations:
                path = f"/api/attendance/sessions/{session_id}/{operation}/"
                response = client.post(path, json={"embedding_model": "dlib"})
                assert response.status_code == 200, response.text


def names_of_people(database) -> dict[int, str]:
    """Whom each provisional student is, by where they sit in the first photo, which is 1.1 times larger."""
    centres = {name: np.array([x + w / 2, y + h / 2]) for name, (x, y, w, h) in FACES.items()}
    with database.connection() as connection:
        rows = connection.execute(
            """SELECT a.student_id, f.x + f.width / 2, f.y + f.height / 2 FROM face_crops f
            JOIN images i ON i.id = f.image_id JOIN assignments a ON a.crop_id = f.id
            WHERE i.path = (SELECT min(path) FROM images)"""
        ).fetchall()
    return {
        student_id: min(centres, key=lambda name: np.linalg.norm(centres[name] * 1.1 - (x, y)))
        for student_id, x, y in rows
    }


def visitor(database, known: dict[int, str]) -> int:
    with database.connection() as connection:
        ids = {student_id for (student_id,) in connection.execute("SELECT id FROM students").fetchall()}
    (guest,) = ids - known.keys()
    return guest


def confirmed_faces(database) -> dict[str, int]:
    with database.connection() as connection:
        return dict(
            connection.execute(
                "SELECT s.name, count(*) FROM confirmed_crops c JOIN students s ON s.id = c.student_id GROUP BY s.name"
            ).fetchall()
        )


def go_to(page: Page, view: str) -> None:
    page.get_by_role("navigation").get_by_role("link", name=re.compile(view)).click()
    expect(page.get_by_role("heading", level=2, name=view)).to_be_focused()


def person(page: Page, student_id: int) -> Locator:
    """The card of somebody without a name."""
    return page.get_by_role("group", name=f"Unnamed person {student_id}", exact=True)


def saved(page: Page, text: str) -> None:
    expect(page.locator("#said")).to_have_text(f"Saved: {text}.")


def undone(page: Page, text: str) -> None:
    expect(page.locator("#said")).to_have_text(f"Undone: {text}.")


FINISHED = "Finished: no question is left, everybody has a name, no cell is unsure."


def test_an_unnamed_class_becomes_a_named_confirmed_register_in_fewer_questions_than_students(
    unnamed, database, review, show
):
    known = names_of_people(database)
    guest = visitor(database, known)
    page = show(review(CLASS_NAME))
    expect(page.locator("#summary")).to_have_text("7 questions left, 7 people without a name.")

    # All but two on one sheet, the guest among them.
    asked = [student_id for student_id, name in known.items() if name in ("Ada", "Fay")]
    go_to(page, "Names")
    for student_id, name in known.items():
        if student_id not in asked:
            person(page, student_id).get_by_role("combobox", name="Name").fill(name)
    person(page, guest).get_by_role("checkbox", name="A visitor").check()
    page.get_by_role("button", name="Save 5 people").click()
    saved(page, "5 people have a name")
    expect(page.locator("#summary")).to_have_text("2 questions left, 2 people without a name.")

    go_to(page, "Questions")
    answered = 0
    for left in (1, 0):
        pictures = page.locator("article img").first.get_attribute("data-crop")
        with database.connection() as connection:
            (student_id,) = connection.execute(
                "SELECT student_id FROM assignments WHERE crop_id = %s", [pictures]
            ).fetchone()
        page.get_by_role("combobox", name="Somebody else, or a new person").fill(known[student_id])
        page.get_by_role("button", name="Save this name").click()
        saved(page, f"an unknown person is {known[student_id]}")
        answered += 1
        expect(page.get_by_role("link", name=re.compile("^Questions"))).to_have_text(
            f"Questions ({left})" if left else "Questions"
        )
    assert answered < len(FACES)
    expect(page.locator("#summary")).to_have_text(FINISHED)

    go_to(page, "Register")
    for name in FACES:
        expect(page.get_by_role("row", name=name).get_by_role("button")).to_have_count(3)
    expect(page.get_by_role("button", name="Fay, 2026-09-14: absent")).to_be_visible()
    register = AttendanceService(database, "dlib").register(CLASS_NAME)
    assert register.students == sorted(FACES)
    assert (register.unknown, len(register.visitors)) == ([], 1)
    assert [place for place, status in register.cells.items() if status == "absent"] == [("Fay", "2026-09-14")]
    with database.connection() as connection:
        (faces,) = connection.execute("SELECT count(*) FROM face_crops").fetchone()
    assert sum(confirmed_faces(database).values()) == faces


def focus_by_tab(page: Page, target: Locator) -> None:
    """Press Tab until the focus is there."""
    element = target.element_handle()
    for _ in range(150):
        if element.evaluate("it => it === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {target}")


def test_by_keyboard_alone_a_class_is_named_split_undone_and_finished(unnamed, database, review, show):
    known = names_of_people(database)
    guest = visitor(database, known)
    page = show(review(CLASS_NAME))
    expect(page.locator("#summary")).to_contain_text("7 people")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()

    answer_and_undo_by_keyboard(page)
    assert confirmed_faces(database) == {}
    name_by_keyboard(page, known, guest)
    expect(page.locator("#summary")).to_have_text(FINISHED)

    with database.connection() as connection:
        crop_id, ada = connection.execute(
            "SELECT crop_id, s.id FROM confirmed_crops c JOIN students s ON s.id = c.student_id WHERE s.name = 'Ada'"
        ).fetchone()
    split_by_keyboard(page, ada, crop_id)
    assert confirmed_faces(database)["Zoe"] == 1
    focus_by_tab(page, page.get_by_role("button", name="Undo: 1 chosen face split off as Zoe"))
    page.keyboard.press("Enter")
    undone(page, "1 chosen face split off as Zoe")
    assert "Zoe" not in confirmed_faces(database)

    excuse_by_keyboard(page)
    register = AttendanceService(database, "dlib").register(CLASS_NAME)
    assert register.students == sorted(FACES)
    assert register.cells["Fay", "2026-09-14"] == "excused"
    assert list(register.cells.values()).count("present") == 17
    assert register.marks["Fay", "2026-09-14"].note == "ill"


def answer_and_undo_by_keyboard(page: Page) -> None:
    """Skip a question, then by digit to the field of the first one, a name, Enter; take it back."""
    page.keyboard.press("s")
    expect(page.get_by_text("1 skipped.")).to_be_visible()
    page.reload()
    expect(page.locator("#question")).to_be_visible()
    page.keyboard.press("1")
    expect(page.get_by_role("combobox")).to_be_focused()
    page.keyboard.type("Zoe")
    page.keyboard.press("Enter")
    saved(page, "an unknown person is Zoe")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.press("u")
    undone(page, "an unknown person is Zoe")
    expect(page.locator("#summary")).to_contain_text("7 people")


def name_by_keyboard(page: Page, known: dict[int, str], guest: int) -> None:
    """Fill in and save the sheet."""
    focus_by_tab(page, page.get_by_role("link", name="Names (7)"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Names")).to_be_focused()
    for student_id, name in known.items():
        focus_by_tab(page, person(page, student_id).get_by_role("combobox"))
        page.keyboard.type(name)
    focus_by_tab(page, person(page, guest).get_by_role("checkbox"))
    page.keyboard.press("Space")
    focus_by_tab(page, page.get_by_role("button", name="Save 7 people"))
    page.keyboard.press("Enter")
    saved(page, "7 people have a name")
    expect(page.get_by_text("Everybody has a name.")).to_be_focused()


def split_by_keyboard(page: Page, student_id: int, crop_id: int) -> None:
    """Choose the student's face and say that it is Zoe, who is new."""
    focus_by_tab(page, page.get_by_role("link", name="Students"))
    page.keyboard.press("Enter")
    student = page.locator(f"[data-student='{student_id}']")
    focus_by_tab(page, student.locator("summary"))
    page.keyboard.press("Enter")
    focus_by_tab(page, student.locator(f"[data-focus='face-{crop_id}']"))
    page.keyboard.press("Space")
    focus_by_tab(page, student.get_by_role("combobox", name="Whose is the 1 chosen face?"))
    page.keyboard.type("Zoe")
    page.keyboard.press("Enter")
    saved(page, "1 chosen face split off as Zoe")


def excuse_by_keyboard(page: Page) -> None:
    """Go through the register with the arrow keys, and say that Fay was ill."""
    focus_by_tab(page, page.get_by_role("link", name="Register"))
    page.keyboard.press("Enter")
    focus_by_tab(page, page.get_by_role("button", name="Ada, 2026-09-07: present"))
    for key in ("ArrowRight", *["ArrowDown"] * 5):
        page.keyboard.press(key)
    expect(page.get_by_role("button", name="Fay, 2026-09-14: absent")).to_be_focused()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    focus_by_tab(page, dialog.get_by_role("radio", name="What the photos say"))
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    expect(dialog.get_by_role("radio", name="Excused")).to_be_checked()
    page.keyboard.press("Tab")
    page.keyboard.type("ill")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    saved(page, "Fay was excused in 2026-09-14")
    expect(page.get_by_role("button", name="Fay, 2026-09-14: excused, by hand")).to_be_focused()


@pytest.fixture
def school(embedded_class, process_class, database, tmp_path) -> None:
    """The class "m": two students with portraits, one with a name from right to left; Eve, whom nobody knows; made faces.

    In the second session a face of Ada's is in doubt.
    """
    embedded_class.enrol("m", "Ada", "ليلى")
    embedded_class.session("m__s1", [["Ada", "ليلى", "Eve"], ["Ada", "Eve"]])
    second = embedded_class.session("m__s2", [["Ada", "ليلى", "Eve"]])
    process_class("dlib")
    store = PhotoStore.from_settings(get_settings().model_copy(update={"home": tmp_path}))
    with database.connection() as connection:
        connection.execute(
            """UPDATE assignments SET state = 'needs_review', runner_up_id = (SELECT id FROM students WHERE name = 'ليلى'),
            runner_up_cosine_similarity = cosine_similarity - 0.001 WHERE crop_id = %s""",
            [second[0, "Ada"]],
        )
        for (crop_id,) in connection.execute("SELECT id FROM face_crops").fetchall():
            colour = np.array([crop_id * 37 % 256, crop_id * 91 % 256, 128], np.uint8)
            path = store.write_crop(f"made/{crop_id}", np.broadcast_to(colour, (120, 96, 3)).copy())
            connection.execute("UPDATE face_crops SET crop_path = %s WHERE id = %s", [path, crop_id])
        keys = sorted(catalog.session_keys(connection))
    for key in keys:
        AttendanceService(database, "dlib").register_session(key)


def statuses(database) -> dict[tuple[str, str], str]:
    return AttendanceService(database, "dlib").register("m").cells


def test_a_face_in_doubt_is_answered_with_the_digit_of_a_candidate_and_undone(school, database, review, show):
    page = show(review("m"))
    assert statuses(database)["Ada", "s2"] == "unsure"
    expect(page.locator("#summary")).to_have_text("2 questions left, 1 person without a name, 1 cell unsure.")
    # The unknown person is seen in two sessions: that answer settles more.
    page.keyboard.press("s")
    expect(page.locator("#question")).to_have_text(re.compile("^Is this face from s2 Ada or .*ليلى.*\\?$"))
    ada, laila = page.locator(".candidate").all()
    expect(ada.get_by_role("button")).to_have_text("1 It is Ada")
    expect(ada.locator("p")).to_have_text(re.compile(r"^very alike \(0\.\d\d\)$"))
    # Portrait first.
    expect(ada.locator("img").first).to_have_attribute("alt", re.compile("^Ada: Face .*portrait"))
    expect(laila.locator("h4 bdi")).to_have_text("ليلى")
    page.keyboard.press("1")
    saved(page, "the face is Ada")
    assert statuses(database)["Ada", "s2"] == "present"
    page.keyboard.press("u")
    undone(page, "the face is Ada")
    expect(page.locator("#summary")).to_contain_text("1 cell unsure")
    assert statuses(database)["Ada", "s2"] == "unsure"


@pytest.mark.parametrize(
    ("answer", "said", "ada", "others"),
    [
        ("3", "the face is Zoe", "absent", {"Zoe": 1}),
        ("4", "the face is a visitor", "absent", {}),
        ("5", "no face", "absent", {}),
    ],
)
def test_a_face_in_doubt_is_of_somebody_else_a_visitor_or_none(
    school, database, review, show, answer, said, ada, others
):
    page = show(review("m"))
    expect(page.locator("#question")).to_contain_text("Who is this person")
    page.keyboard.press("s")
    expect(page.locator("#question")).to_contain_text("Ada")
    page.keyboard.press(answer)
    if answer == "3":
        page.keyboard.type("Zoe")
        page.keyboard.press("Enter")
    saved(page, said)
    expect(page.locator("#summary")).to_have_text("1 question left, 1 person without a name.")
    assert statuses(database)["Ada", "s2"] == ada
    faces = confirmed_faces(database)
    assert {name: faces[name] for name in others} == others
    page.keyboard.press("u")
    undone(page, said)
    assert statuses(database)["Ada", "s2"] == "unsure"


def test_the_sheet_offers_the_classs_names_and_joins_faces_to_a_student_without_those_left_out(
    school, database, review, show
):
    page = show(review("m") + "#names")
    card = page.get_by_role("group", name=re.compile("^Unnamed person"))
    expect(card.get_by_text("3 faces in 2 sessions")).to_be_visible()
    faces = card.locator(".toggle")
    expect(faces).to_have_count(3)
    faces.nth(2).click()
    expect(faces.nth(2)).to_have_attribute("aria-pressed", "false")
    left_out = int(faces.nth(2).locator("img").get_attribute("data-crop"))
    name = card.get_by_role("combobox", name="Name")
    name.press_sequentially("ad")
    expect(card.get_by_role("option")).to_have_text(["Ada"])
    name.press("ArrowDown")
    expect(card.get_by_role("option")).to_have_attribute("aria-selected", "true")
    name.press("Enter")
    expect(name).to_have_value("Ada")
    expect(card.get_by_text("Is Ada, who is in the class.")).to_be_visible()
    page.get_by_role("button", name="Save 1 person").click()
    saved(page, "an unknown person is Ada")
    with database.connection() as connection:
        said = connection.execute(
            "SELECT kind FROM decisions WHERE decided_by = %s AND part_of IS NULL ORDER BY id", [current_user()]
        )
        assert [kind for (kind,) in said.fetchall()] == ["not_this_student", "merge", "assign"]
        shown = dict(connection.execute("SELECT crop_id, student_id FROM confirmed_crops").fetchall())
    assert left_out not in shown
    # Who was left out shows nobody, and can be given to somebody.
    page.locator(f"[data-focus='loose-{left_out}']").click()
    page.get_by_role("combobox", name="Whose are the chosen ones?").fill("ليلى")
    page.get_by_role("button", name="Give them").click()
    saved(page, "1 face given to \u2068ليلى\u2069")
    assert confirmed_faces(database) == {"Ada": 3, "ليلى": 2}
    page.keyboard.press("u")
    undone(page, "1 face given to \u2068ليلى\u2069")
    page.get_by_role("button", name="Undo: an unknown person is Ada").click()
    undone(page, "an unknown person is Ada")
    expect(card.get_by_text("3 faces in 2 sessions")).to_be_visible()


def test_faces_that_show_nobody_become_a_new_person_or_a_visitor(school, database, review, show):
    with database.connection() as connection:
        shown = connection.execute(
            "SELECT a.crop_id FROM assignments a JOIN students s ON s.id = a.student_id WHERE s.provisional ORDER BY 1"
        )
        loose = [crop_id for (crop_id,) in shown.fetchall()]
    assert len(loose) == 3
    for crop_id in loose:
        DecisionService("somebody else").unassign(crop_id)
    page = show(review("m") + "#names")
    expect(page.get_by_role("heading", name="Faces that show nobody (3)")).to_be_visible()
    # By keyboard: two faces, a name that nobody has, Enter.
    for crop_id in loose[:2]:
        focus_by_tab(page, page.locator(f"[data-focus='loose-{crop_id}']"))
        page.keyboard.press("Space")
    name = page.get_by_role("combobox", name="Whose are the chosen ones?")
    focus_by_tab(page, name)
    page.keyboard.press("Enter")
    expect(page.get_by_text("Write a name first.")).to_be_visible()
    page.keyboard.type("Zoe")
    expect(page.get_by_text("A new person.")).to_be_visible()
    page.keyboard.press("Enter")
    saved(page, "2 faces are Zoe, who is new")
    assert confirmed_faces(database)["Zoe"] == 2
    assert statuses(database)["Zoe", "s1"] == "present"
    expect(page.get_by_role("heading", name="Faces that show nobody (1)")).to_be_visible()
    expect(name).to_have_value("")

    page.get_by_role("button", name="A visitor").click()
    expect(page.get_by_text("Choose faces first.")).to_be_visible()
    page.locator(f"[data-focus='loose-{loose[2]}']").click()
    page.get_by_role("button", name="A visitor").click()
    saved(page, "1 face is a visitor's")
    assert len(AttendanceService(database, "dlib").register("m").visitors) == 1
    go_to(page, "Log")
    expect(page.locator(".log li").nth(2)).to_contain_text("2 faces are somebody new: Zoe.")
    go_to(page, "Names")
    for title in ("1 face is a visitor's", "2 faces are Zoe, who is new"):
        page.keyboard.press("u")
        undone(page, title)
    expect(page.get_by_role("heading", name="Faces that show nobody (3)")).to_be_visible()
    assert "Zoe" not in confirmed_faces(database)
    assert ("Zoe", "s1") not in statuses(database)
    # A name of the class gives it to that student, as before.
    page.locator(f"[data-focus='loose-{loose[0]}']").click()
    name.fill("Ada")
    page.get_by_role("button", name="Give them").click()
    saved(page, "1 face given to Ada")


def reasons(database) -> list[tuple[str, str | None]]:
    """Kinds and reasons of what was decided in the page, parts left out."""
    with database.connection() as connection:
        return connection.execute(
            "SELECT kind, reason FROM decisions WHERE decided_by = %s AND part_of IS NULL ORDER BY id", [current_user()]
        ).fetchall()


def test_a_reason_is_kept_with_the_next_decision_alone(school, database, review, show):
    page = show(review("m"))
    expect(page.locator("#question")).to_contain_text("Who is this person")
    why = page.get_by_label("Why?")
    expect(why).to_be_hidden()
    page.keyboard.press("1")
    expect(page.get_by_role("combobox")).to_be_focused()
    page.get_by_role("heading", level=1).click()
    page.keyboard.press("w")
    expect(why).to_be_focused()
    page.keyboard.type("dropped")
    page.keyboard.press("Escape")
    expect(why).to_be_hidden()
    page.keyboard.press("w")
    page.keyboard.type("her brother says so")
    page.keyboard.press("Enter")
    expect(why).not_to_be_focused()
    expect(why).to_have_value("her brother says so")
    page.keyboard.press("2")
    saved(page, "an unknown person is a visitor")
    expect(why).to_be_hidden()
    both = "her brother says so"
    assert reasons(database) == [("hide", both), ("confirm", both)]
    page.keyboard.press("w")
    page.keyboard.type("a mistake")
    page.keyboard.press("Enter")
    page.keyboard.press("u")
    undone(page, "an unknown person is a visitor")
    expect(why).to_be_hidden()
    page.keyboard.press("2")
    saved(page, "an unknown person is a visitor")
    said = reasons(database)[2:]
    assert said == [("undo", "a mistake"), ("undo", "a mistake"), ("hide", None), ("confirm", None)]
    # In the register it is the note, where none is written there.
    go_to(page, "Register")
    page.keyboard.press("w")
    page.keyboard.type("ill")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Ada, s1: present").click()
    page.get_by_role("dialog").get_by_role("radio", name="Excused").check()
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    saved(page, "Ada was excused in s1")
    assert reasons(database)[-1] == ("attendance", "ill")


def test_the_next_question_is_asked_while_the_class_is_read(school, database, review, show):
    page = show(review("m"))
    expect(page.locator("#summary")).to_have_text("2 questions left, 1 person without a name, 1 cell unsure.")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/review/", hold)
    page.keyboard.press("1")
    page.keyboard.type("Zoe")
    page.keyboard.press("Enter")
    saved(page, "an unknown person is Zoe")
    # The class was not read again yet.
    expect(page.locator("#question")).to_have_text(re.compile("^Is this face from s2 Ada"))
    expect(page.locator("#summary")).to_contain_text("1 question left")
    # Zoe, whom the page does not know yet, is no second student of that name.
    page.keyboard.press("3")
    page.keyboard.type("Zoe")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_have_attribute("aria-busy", "true")
    (read,) = held
    read.continue_()
    page.unroute("**/review/")
    saved(page, "the face is Zoe")
    expect(page.locator("#summary")).to_have_text(FINISHED)
    assert confirmed_faces(database)["Zoe"] == 4
    assert [kind for kind, _ in reasons(database)] == ["rename", "confirm", "assign"]
    page.keyboard.press("u")
    undone(page, "the face is Zoe")
    expect(page.locator("#question")).to_have_text(re.compile("^Is this face from s2 Ada"))


@pytest.mark.parametrize("width", [360, 1280])
def test_what_has_the_focus_is_not_behind_the_save_button(unnamed, review, show, width):
    page = show(review(CLASS_NAME) + "#names", width=width, reduced_motion="reduce")
    expect(page.get_by_role("group")).to_have_count(7)
    # With the reason's field the footer has more rows on a phone.
    page.keyboard.press("w")
    page.keyboard.type("seen")
    page.keyboard.press("Enter")
    stops = page.locator("main .card :is(button, input)").all()
    assert len(stops) > 20
    for stop in stops:
        stop.focus()
        hidden = stop.evaluate(
            """it => it.getBoundingClientRect().bottom - document.querySelector(".save").getBoundingClientRect().top"""
        )
        assert hidden <= 0
    page.evaluate("scrollTo(0, 0)")
    save, footer = (page.locator(selector).bounding_box() for selector in (".save", "footer"))
    assert abs(save["y"] + save["height"] - footer["y"]) < 1


def test_students_are_confirmed_corrected_renamed_merged_and_the_log_undoes_it(school, database, review, show):
    page = show(review("m") + "#students")
    search = page.get_by_role("searchbox", name="Find")
    search.fill("ada")
    expect(page.locator("main details:visible")).to_have_count(1)
    ada = page.locator("main details:visible")
    expect(ada).to_contain_text("2 not confirmed")
    ada.locator("summary").click()
    ada.get_by_role("button", name="Confirm all 2 that are shown").click()
    saved(page, "2 faces of Ada confirmed")
    expect(ada).to_contain_text("all confirmed")
    assert confirmed_faces(database)["Ada"] == 3

    ada.locator(".toggle").first.click()
    ada.get_by_role("button", name="Not Ada").click()
    saved(page, "1 chosen face is not Ada")
    expect(ada.locator(".toggle")).to_have_count(1)
    ada.locator(".toggle").first.click()
    ada.get_by_role("combobox", name="Whose is the 1 chosen face?").fill("ليلى")
    ada.get_by_role("button", name="Move or split").click()
    # A name from right to left is set apart, so that it does not turn the sentence.
    saved(page, "1 chosen face moved to \u2068ليلى\u2069")
    assert confirmed_faces(database) == {"Ada": 1, "ليلى": 2}

    ada.get_by_role("combobox", name="Another name").fill("Ada Lovelace")
    ada.get_by_role("button", name="Rename").click()
    saved(page, "Ada is called Ada Lovelace")
    ada.get_by_role("combobox", name="Is the same person as").fill("ليلى")
    ada.get_by_role("button", name="Merge").click()
    saved(page, "Ada Lovelace and \u2068ليلى\u2069 are one")
    assert confirmed_faces(database) == {"ليلى": 3}

    go_to(page, "Log")
    entries = page.locator(".log li")
    expect(entries).to_have_count(7)  # two portraits among them
    expect(entries.first).to_contain_text("ليلى")
    entries.first.get_by_role("button").click()
    expect(entries.nth(1)).to_contain_text("Undone by decision")
    assert confirmed_faces(database) == {"Ada Lovelace": 1, "ليلى": 2}


def test_while_the_class_is_busy_a_retry_is_offered_and_nothing_is_lost(school, database, review, show):
    page = show(review("m") + "#names", expected="409")
    card = page.get_by_role("group", name=re.compile("^Unnamed person"))
    card.get_by_role("combobox").fill("Eve")
    with database.connection() as connection:
        catalog.lock_class(connection, catalog.find_class(connection, "m"))
        page.get_by_role("button", name="Save 1 person").click()
        problem = page.get_by_role("alert")
        expect(problem).to_contain_text("Not saved: an unknown person is Eve. The class")
    expect(card.get_by_role("combobox")).to_have_value("Eve")
    assert confirmed_faces(database) == {"Ada": 1, "ليلى": 1}
    problem.get_by_role("button", name="Try again").click()
    saved(page, "an unknown person is Eve")
    expect(problem).to_be_empty()
    assert confirmed_faces(database)["Eve"] == 3


def test_an_answer_is_about_the_faces_that_are_shown_and_no_faces_are_one_decision(
    embedded_class, process_class, database, review, show
):
    embedded_class.enrol("m", "Ada")
    embedded_class.session("m__s1", [["Eve"]] * 14)
    process_class("dlib")
    page = show(review("m"), expected="404")  # these faces have no pictures
    expect(page.locator("#question")).to_contain_text("Who is this person")
    expect(page.locator("article")).to_contain_text("and 2 more, which the answer says nothing of")
    page.get_by_role("button", name="These are not faces").click()
    saved(page, "no faces")
    with database.connection() as connection:
        assert connection.execute("SELECT count(*) FROM not_faces").fetchone() == (12,)
    page.keyboard.press("u")
    undone(page, "no faces")
    with database.connection() as connection:
        assert connection.execute("SELECT count(*) FROM not_faces").fetchone() == (0,)


def test_what_somebody_else_has_undone_is_in_nobodys_way(school, database, review, show):
    page = show(review("m"), expected="409")
    expect(page.locator("#question")).to_contain_text("Who is this person")
    page.keyboard.press("s")
    expect(page.locator("#question")).to_contain_text("Ada")
    page.keyboard.press("1")
    saved(page, "the face is Ada")
    go_to(page, "Names")
    page.get_by_role("checkbox", name="A visitor").check()
    page.get_by_role("button", name="Save 1 person").click()
    expect(page.locator("#summary")).to_have_text(FINISHED)
    with database.connection() as connection:
        (hidden,) = connection.execute("SELECT max(id) FROM decisions WHERE kind = 'hide'").fetchone()
    DecisionService("somebody else").undo(hidden)
    page.keyboard.press("u")
    expect(page.locator("#said")).to_have_text(re.compile("^Undone: .*visitor"))
    page.keyboard.press("u")
    undone(page, "the face is Ada")
    assert statuses(database)["Ada", "s2"] == "unsure"


def test_what_was_saved_before_an_error_can_be_undone_or_gone_on_with(school, database, review, show):
    page = show(review("m") + "#names", expected="409")
    card = page.get_by_role("group", name=re.compile("^Unnamed person"))
    card.locator(".toggle").first.click()
    # The name is taken while somebody writes it.
    card.get_by_role("combobox").fill("Zoe")
    with database.connection() as connection:
        (ada,) = connection.execute("SELECT id FROM students WHERE name = 'Ada'").fetchone()
    DecisionService("somebody else").rename(ada, "Zoe")
    page.get_by_role("button", name="Save 1 person").click()
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("2 steps of “an unknown person is Zoe” not saved. The class m has another student")
    expect(page.locator("#said")).to_have_text("Only a part is saved: an unknown person is Zoe.")
    expect(card.get_by_role("combobox")).to_have_value("Zoe")
    DecisionService("somebody else").rename(ada, "Ada")
    problem.get_by_role("button", name="Try again").click()
    saved(page, "an unknown person is Zoe")
    assert confirmed_faces(database)["Zoe"] == 2


def test_a_problem_is_shown_in_the_dialog_that_it_is_about(school, database, review, show):
    page = show(review("m") + "#register", expected="409")
    page.get_by_role("button", name="Ada, s1: present").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("2 faces in 2 of 2 photos show Ada.")
    expect(dialog.locator(".evidence li")).to_have_count(2)
    dialog.get_by_role("radio", name="Absent").check()
    dialog.get_by_label("Note").fill("a photo of her")
    with database.connection() as connection:
        catalog.lock_class(connection, catalog.find_class(connection, "m"))
        dialog.get_by_role("button", name="Save").click()
        problem = dialog.get_by_role("alert")
        expect(problem).to_contain_text("Not saved: Ada was absent in s1.")
    problem.get_by_role("button", name="Try again").click()
    saved(page, "Ada was absent in s1")
    expect(page.get_by_role("button", name="Ada, s1: absent, by hand")).to_be_focused()
    assert statuses(database)["Ada", "s1"] == "absent"


def test_an_error_is_said_in_words_and_what_was_written_stays(school, database, review, show):
    page = show(review("m") + "#students", expected="409")
    with database.connection() as connection:
        (ada,) = connection.execute("SELECT id FROM students WHERE name = 'Ada'").fetchone()
    card = page.locator(f"[data-student='{ada}']")
    card.locator("summary").click()
    # Somebody else gives the name in the meantime.
    with database.connection() as connection:
        (eve,) = connection.execute("SELECT id FROM students WHERE provisional").fetchone()
    DecisionService("somebody else").rename(eve, "Eve")
    card.get_by_role("combobox", name="Another name").fill("Eve")
    card.get_by_role("button", name="Rename").click()
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("Not saved: Ada is called Eve. The class m has another student 'Eve'")
    problem.get_by_role("button", name="Close").click()
    expect(problem).to_be_empty()
    # What was written is still there.
    expect(card.get_by_role("combobox", name="Another name")).to_have_value("Eve")


def test_with_a_token_the_page_asks_for_it_once_and_shows_faces(school, review, show):
    token = "päss word"
    url = review("m", ATTENDANSEE_API_TOKEN=token)
    page = show(url, expected="401")
    dialog = page.get_by_role("dialog", name="Token")
    dialog.get_by_label("Token").fill("wrong")
    dialog.get_by_role("button").click()
    expect(dialog).to_contain_text("does not take this token")
    dialog.get_by_label("Token").fill(token)
    dialog.get_by_role("button").click()
    expect(dialog).to_be_hidden()
    face = page.locator("article img").first
    expect(face).to_have_attribute("src", re.compile("^blob:"))
    assert face.evaluate("image => image.decode().then(() => image.naturalWidth)") == 96
    page.reload()
    expect(page.locator("#question")).to_be_visible()
    expect(dialog).to_be_hidden()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_is_wider_than_the_screen_and_tab_reaches_everything(school, review, show, width, scheme):
    page = show(review("m"), width=width, color_scheme=scheme, reduced_motion="reduce")
    for view in VIEWS:
        page.goto(f"{page.url.partition('#')[0]}#{view}")
        expect(page.get_by_role("heading", level=2)).to_have_text(view.capitalize())
        if view == "students":
            for summary in page.locator("main summary").all():
                summary.click()
            page.locator("main .toggle").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        there = page.evaluate(
            """() => [...document.querySelectorAll("a, button, input, summary")].filter(
                it => it.checkVisibility() && !it.disabled).length"""
        )
        unnamed = """() => [...document.querySelectorAll("main button, main input, main img")].filter(it =>
            it.matches("img") ? !it.hasAttribute("alt") : it.matches("input") ? !it.labels.length
            : !(it.getAttribute("aria-label") || it.textContent.trim())).map(it => it.outerHTML)"""
        assert page.evaluate(unnamed) == []
        # Once around: a trap would show the same few for ever.
        page.evaluate("document.activeElement.blur(); window.seen = new Set()")
        for _ in range(there + 5):
            page.keyboard.press("Tab")
            page.evaluate("seen.add(document.activeElement)")
        assert page.evaluate("[...seen].filter(it => it.matches('a, button, input, summary')).length") == there


def test_a_class_that_is_not_there_is_said_with_those_that_are(school, review, show):
    url = review("m")
    page = show(url.replace("/review/m", "/review/n"))
    expect(page.get_by_role("alert")).to_contain_text("There is no class n. There is m.")


def test_the_skip_link_leads_into_the_view_that_is_shown(school, review, show):
    page = show(review("m") + "#students")
    expect(page.get_by_role("heading", level=2)).to_have_text("Students")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.locator("main details", has_text="Ada").locator("summary").click()
    page.get_by_role("button", name="Confirm all 2 that are shown").click()
    saved(page, "2 faces of Ada confirmed")
    expect(page.get_by_role("heading", level=2)).to_have_text("Students")


def test_keys_can_be_switched_off(school, review, show):
    page = show(review("m"))
    question = page.locator("#question").text_content() or ""
    page.keyboard.press("?")
    page.get_by_role("checkbox", name="Digits and letters are keys").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    expect(page.locator("#question")).to_have_text(question)
    page.reload()
    expect(page.locator("#question")).to_have_text(question)
    page.keyboard.press("s")
    expect(page.locator("#question")).to_have_text(question)
