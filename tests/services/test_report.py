"""The report as a file: whole without a network, right for every name, readable by eye, keyboard and screen reader."""

import base64
import csv
import io
import re
from collections.abc import Callable
from datetime import datetime
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from openpyxl import load_workbook
from PIL import Image

from pipelines.database import catalog
from pipelines.partitions import SessionKey
from pipelines.services import report as report_module
from pipelines.services.attendance import AttendanceService
from pipelines.services.context import ServiceContext, default_context
from pipelines.services.decisions import DecisionService
from pipelines.services.export import EVIDENCE_COLUMNS, report_csv, report_json, report_xlsx
from pipelines.services.reclustering import ReclusteringConfig, ReclusteringService
from pipelines.services.report import report_html
from pipelines.services.review import Review, read_review

BOLD, SUM, RTL = "<b>Bob</b> & 'Co\"", "=1+1", "محمد الخوارزمي"
MADE_AT = datetime(2026, 9, 7, 12, 0)

# The lowest contrast between a text and what is painted behind it, WCAG 2.2, "relative luminance", with the text.
LOWEST_CONTRAST = """() => {
    const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const parse = text => text.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const colour = parse(getComputedStyle(e).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
    };
    let lowest = [21, ''];
    for (const element of document.body.querySelectorAll('*')) {
        const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join('');
        if (!text) continue;
        const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(behind(element))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < lowest[0]) lowest = [contrast, text];
    }
    return lowest;
}"""


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of each."""

    VOID = frozenset({"meta", "img", "br", "image", "use"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        if tag not in self.VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for index in self.open:
            self.elements[index][2].append(data)

    def all(self, *tags: str) -> list[tuple[dict[str, str], str]]:
        return [(attributes, " ".join("".join(text).split())) for tag, attributes, text in self.elements if tag in tags]

    def one(self, identity: str) -> str:
        (text,) = [
            " ".join("".join(t).split()) for _, attributes, t in self.elements if attributes.get("id") == identity
        ]
        return text


@pytest.fixture
def school(embedded_class, process_class, database, tmp_path) -> Callable[..., tuple[ServiceContext, Review]]:
    """The class "m" with photos and crops in files; of the three photos 2026-09-07/1.jpg is gone."""
    embedded_class.enrol("m", BOLD, SUM, RTL)
    embedded_class.session("m__2026-09-07", [[BOLD, SUM, RTL, "Eve"], [BOLD, "Eve"]])
    embedded_class.session("m__2026-09-14", [[SUM, RTL]])
    context = default_context()
    photos = tmp_path / "photos"
    store = context.store.model_copy(update={"photos": str(photos), "crops": str(tmp_path / "crops")})
    rng = np.random.default_rng(3)
    with database.connection() as connection:
        catalog.record_photo_root(connection, "m", str(photos))
        for path in ("m/2026-09-07/0.jpg", "m/2026-09-14/0.jpg"):
            (photos / path).parent.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 255, (200, 200, 3), np.uint8)).resize((1000, 1000)).save(photos / path)
        for (crop_id,) in connection.execute("SELECT id FROM face_crops").fetchall():
            stored = store.write_crop(f"m/{crop_id}", rng.integers(0, 255, (120, 90, 3), np.uint8))
            connection.execute("UPDATE face_crops SET crop_path = %s WHERE id = %s", [stored, crop_id])
    process_class("dlib")
    surroundings = ServiceContext(context.database, store, context.models, context.settings)

    def read(session: str | None = None) -> tuple[ServiceContext, Review]:
        return surroundings, read_review(surroundings, "m", session_name=session)

    return read


def page_of(school: Callable[..., tuple[ServiceContext, Review]], session: str | None = None) -> tuple[str, Page]:
    text = report_html(*school(session), MADE_AT)
    return text, Page(text)


def test_the_file_needs_nothing_but_itself(school):
    text, page = page_of(school)
    assert page.all("script", "iframe", "link", "object", "embed", "form") == []
    for attributes, _ in page.all("img", "image", "use", "a"):
        address = attributes.get("src") or attributes.get("href", "")
        assert address.startswith(("data:image/jpeg;base64,", "#")), address[:60]
    assert re.findall(r"(?:https?:)?//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)) == []
    assert "url(" not in text
    assert "@import" not in text
    assert not any(name.startswith("on") for _, attributes, _ in page.elements for name in attributes)
    (policy,) = [a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_every_link_leads_somewhere_and_every_id_is_one(school):
    _, page = page_of(school)
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for a, _ in page.all("a", "use")}
    labels = {a["aria-labelledby"] for _, a, _ in page.elements if "aria-labelledby" in a}
    assert links | labels <= set(ids)


def test_it_can_be_read_with_a_screen_reader_and_a_keyboard(school):
    _, page = page_of(school)
    assert [a["lang"] for a, _ in page.all("html")] == ["en"]
    for landmark in ("header", "nav", "main", "footer", "h1", "title", "caption"):
        assert len(page.all(landmark)) == 1, landmark
    assert page.all("a")[0] == ({"class": "skip", "href": "#register"}, "Skip to the register")
    assert all(len(a["alt"]) > 10 for a, _ in page.all("img"))
    pictures = [a for a, _ in page.all("svg") if "aria-hidden" not in a]
    assert pictures
    assert all(a["role"] == "img" and a["aria-label"].startswith("Face: ") for a in pictures)
    assert {a.get("scope") for a, _ in page.all("th")} == {"row", "col"}
    (scrolled,) = [a for _, a, _ in page.elements if a.get("role") == "region"]
    assert scrolled["tabindex"] == "0"
    assert all(text or a.get("aria-label") for a, text in page.all("a"))
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_names_are_text_and_keep_their_direction(school):
    text, page = page_of(school)
    assert page.all("b") == [(a, t) for a, t in page.all("b") if t[:1] in "✓?●V⊘"], "only the labels of boxes are bold"
    assert BOLD not in text
    names = [t for _, t in page.all("bdi")]
    assert names.count(BOLD) >= 3
    assert RTL in names
    labels = [a["aria-label"] for a, _ in page.all("svg", "a") if RTL in a.get("aria-label", "")]
    assert labels
    assert all(f"\u2068{RTL}\u2069" in label for label in labels)


def test_every_cell_links_to_its_evidence_in_words(school):
    context, review = school()
    page = Page(report_html(context, review, MADE_AT))
    cells = [a["href"][1:] for a, t in page.all("a") if re.match("c[0-9]", a["href"][1:]) and ": why," in t]
    assert sorted(cells) == sorted(f"c{cell.student_id}-{cell.session_id}" for cell in review.cells)
    for cell in review.cells:
        evidence = page.one(f"c{cell.student_id}-{cell.session_id}").replace("\u2068", "").replace("\u2069", "")
        assert cell.status in evidence
        for sentence in cell.why:
            assert sentence.replace("\u2068", "").replace("\u2069", "") in evidence
        nearest = [] if cell.nearest_id is None else [cell.nearest_id]
        explained = evidence.count("Compared with the known faces") + evidence.count("Looks like other faces")
        assert explained == len(cell.crop_ids + nearest)
        assert ("Named above as most alike: " in evidence) == bool(nearest)
    assert any(cell.nearest_id is not None for cell in review.cells)


def test_every_cell_of_the_register_can_be_gone_back_to(school):
    _, review = school()
    _, page = page_of(school)
    back = [a["href"] for a, t in page.all("a") if t == "↑ back to the cell"]
    assert back == [
        f"#r{c.student_id}-{c.session_id}"
        for s in review.students
        for c in review.cells
        if c.student_id == s.student_id
    ]
    cells = [f"#{a['id']}" for a, t in page.all("a") if ": why," in t]
    assert sorted(back) == sorted(cells)


def stops_of(page: Page) -> list[dict[str, str]]:
    """What the Tab key stops at."""
    return [a for tag, a, _ in page.elements if (tag == "a" or "tabindex" in a) and a.get("tabindex") != "-1"]


def test_a_key_stops_at_each_student_once_and_at_cells_only_where_there_is_doubt(school, database):
    """A row leads to the reasons of all its cells; a stop for each cell and face made 245 of 13 students in 5 sessions."""
    _, review = school()
    _, page = page_of(school)
    rows = sum(student.in_register for student in review.students)
    # 5 links to skip parts, 5 to the parts, 3 from words to the questions and the legend, the table that can be scrolled.
    assert len(stops_of(page)) <= 2 * rows + len(review.sessions) + 14
    assert not any(": why," in t for a, t in page.all("a") if a.get("tabindex") != "-1")
    face = next(c for c in review.cells if c.status == "present" and len(c.crop_ids) == 1)
    with database.connection() as connection:
        connection.execute("UPDATE assignments SET state = 'needs_review' WHERE crop_id = %s", [face.crop_ids[0]])
    for session in review.sessions:
        AttendanceService(database, "dlib").register_session(SessionKey("m", session.name))
    _, page = page_of(school)
    doubtful = f"c{face.student_id}-{face.session_id}"
    assert {a["href"][1:] for a, t in page.all("a") if ": why," in t and a.get("tabindex") != "-1"} >= {doubtful}


def test_photos_and_cells_have_headings(school):
    _, page = page_of(school)
    headings = [t for _, t in page.all("h4")]
    assert len([t for t in headings if re.fullmatch(r"[01].jpg: [0-9] faces?", t)]) == 3
    assert any(t.startswith(f"{RTL}, 2026-09-07: ✓ present") for t in headings)


def test_students_unknown_people_and_visitors_are_counted_apart(school):
    _, page = page_of(school)
    (header,) = [t for _, t in page.all("header")]
    assert "3 students and 1 unknown person in 2 sessions." in header
    _, review = school()
    DecisionService("ann").hide(next(s.student_id for s in review.students if s.kind == "unknown"))
    _, page = page_of(school)
    (header,) = [t for _, t in page.all("header")]
    assert "3 students in 2 sessions; 1 visitor, in no register." in header
    (back,) = [a["href"] for a, t in page.all("a") if t == "↑ visitors"]
    assert [t for a, t in page.all("a") if a.get("id") == back[1:]]


def test_the_words_of_the_sentences_are_explained(school):
    _, page = page_of(school)
    terms = {t for _, t in page.all("dt")}
    assert terms >= {
        *("Similarity", "Needed (limit, threshold)", "Next comes (runner-up)", "Ahead by (lead, margin)"),
        *("Compared together", "Group (cluster)", "Automatically (run)", "Unknown or unnamed person", "Visitor"),
    }
    for _, text in page.all("article"):
        for word in ("runner-up", "cosine", "likest", "grouped", "Grouped", "lead", "cluster"):
            assert not re.search(rf"\b{word}\b", text), (word, text)
    (body,) = [t for _, t in page.all("main")]
    assert "cosine" not in body


def test_what_people_have_said_stands_with_the_student_and_with_the_question(school, database):
    _, first = school()
    ann, ids = DecisionService("ann"), {s.name: s.student_id for s in first.students}
    unknown = next(s for s in first.students if s.kind == "unknown")
    ann.rename(unknown.student_id, "Eve", "she told me")
    crop_id = next(s for s in first.students if s.name == SUM).crop_ids[-1]  # BOLD is absent there
    ann.reject(crop_id, ids[SUM], "his <i>brother</i>")
    with database.connection() as connection:
        connection.execute(
            "UPDATE assignments SET state = 'needs_review', student_id = %s, cosine_similarity = 0.94, similarity = 0.6, "
            "runner_up_id = %s, runner_up_cosine_similarity = 0.93 WHERE crop_id = %s",
            [ids[BOLD], unknown.student_id, crop_id],
        )
    AttendanceService(database, "dlib").register_session(SessionKey("m", "2026-09-14"))
    text, page = page_of(school)
    assert "his <i>brother</i>" not in text
    evidence = page.one(f"student{unknown.student_id}")
    assert re.search(rf"On [\d-]+ ann gave {unknown.label} the name Eve: she told me\.", evidence)
    assert "What people have said" not in page.one(f"student{ids[SUM]}")
    asked = page.one(f"which-{crop_id}")
    assert "The best match was set aside by a person. Its similarity to =1+1, 0." in asked
    assert re.search(r"but ann said on [\d-]+ that this is not =1\+1: his <i>brother</i>\.", asked)


def test_somebody_without_a_name_is_called_so_and_the_name_for_commands_is_beside_it(school):
    _, review = school()
    (unknown,) = [s for s in review.students if s.kind == "unknown"]
    _, page = page_of(school)
    (body,) = [t for _, t in page.all("body")]
    assert body.count(unknown.name) == 1
    assert [t for _, t in page.all("code")].count(unknown.name) == 1
    evidence = page.one(f"student{unknown.student_id}")
    assert evidence.startswith(
        f"{unknown.label}↑ back to the row Nobody has named this person yet. First seen in 2026-09-07."
    )
    (row,) = [(a, t) for a, t in page.all("a") if a.get("id") == f"row{unknown.student_id}"]
    assert (row[0]["title"], row[1]) == (unknown.name, unknown.label)
    assert all("Cluster_" not in a.get("aria-label", "") for _, a, _ in page.elements)


def test_the_limit_stands_at_the_top_and_in_the_words_with_where_it_comes_from(school):
    _, review = school()
    _, page = page_of(school)
    (header,) = [t for _, t in page.all("header")]
    assert "takes a face for a student from a similarity of 0.58 (the limit)" in header
    assert review.threshold_origin in header
    assert sum(review.threshold_origin in t for _, t in page.all("dd")) == 1


def test_states_are_told_apart_without_colours(school, database):
    _, review = school()
    (unknown,) = [s for s in review.students if s.kind == "unknown"]
    DecisionService("ann").hide(unknown.student_id)
    rtl = next(s for s in review.students if s.name == RTL)
    DecisionService("ann").not_a_face([rtl.crop_ids[-1]])
    with database.connection() as connection:
        connection.execute("UPDATE assignments SET state = 'needs_review' WHERE crop_id = %s", [rtl.crop_ids[0]])
    text, page = page_of(school)
    boxes = {
        a["class"].split()[1]: (a["aria-label"], t) for a, t in page.all("a") if a.get("class", "").startswith("box")
    }
    assert set(boxes) == {"b-sure", "b-unsure", "b-visitor", "b-not_a_face"}
    for name, symbol in {"b-sure": "✓", "b-unsure": "?", "b-visitor": "V", "b-not_a_face": "⊘"}.items():
        label, shown = boxes[name]
        assert name[2:].replace("_", " ") in label
        assert shown.startswith(symbol)
    for style in ("dashed", "dotted", "double"):
        assert f"border-style: {style}" in text


def test_a_photo_that_is_gone_is_said_in_its_place(school):
    _, page = page_of(school)
    assert len(page.all("img")) == 2  # of three
    (gone,) = [t for a, t in page.all("p") if a.get("class") == "gone"]
    assert "'m/2026-09-07/1.jpg' is no longer in the photo root" in gone
    assert len(page.all("symbol")) == 11  # all faces are there, which were cut out before


def test_without_the_photo_root_and_the_crops_it_is_still_made(school, tmp_path):
    (tmp_path / "photos").rename(tmp_path / "moved")
    (tmp_path / "crops").rename(tmp_path / "crops_moved")
    _, page = page_of(school)
    assert page.all("img", "symbol") == []
    assert "its picture is gone" in {a.get("aria-label", "")[-20:-1] for a, _ in page.all("span")}
    assert len([a for a, _ in page.all("p") if a.get("class") == "gone"]) == 3


def test_the_file_stays_small_however_many_photos_there_are(school, monkeypatch):
    monkeypatch.setattr(report_module, "PHOTO_BYTES", 400_000)
    monkeypatch.setattr(report_module, "FACE_BYTES", 20_000)
    text, page = page_of(school)
    photos = [base64.b64decode(a["src"].partition(",")[2]) for a, _ in page.all("img")]
    faces = [base64.b64decode(a["href"].partition(",")[2]) for a, _ in page.all("image")]
    assert sum(map(len, photos)) <= 400_000
    assert 0 < sum(map(len, faces)) <= 20_000
    assert len(photos) == 2
    assert len(text) < 700_000
    monkeypatch.setattr(report_module, "PHOTO_BYTES", 0)
    assert "Left out to keep the file small" in page_of(school)[0]


def test_the_newest_session_has_its_photos_when_there_is_no_room_for_all(school, monkeypatch):
    monkeypatch.setattr(report_module, "_PHOTO_SIDES", (640,))
    _, whole = page_of(school)
    sizes = [len(base64.b64decode(a["src"].partition(",")[2])) for a, _ in whole.all("img")]
    assert len(sizes) == 2
    monkeypatch.setattr(report_module, "PHOTO_BYTES", max(sizes))
    _, page = page_of(school)
    (photo,) = [a["alt"] for a, _ in page.all("img")]
    assert "of 2026-09-14 with" in photo
    gone = [t for a, t in page.all("p") if a.get("class") == "gone"]
    assert sum(t.startswith("Left out to keep the file small") for t in gone) == len(gone) == 2


def test_faces_beyond_the_room_are_neither_read_nor_said_to_be_gone(school, monkeypatch):
    read = []
    face_jpeg = report_module.face_jpeg
    monkeypatch.setattr(report_module, "face_jpeg", lambda *args: (read.append(args), face_jpeg(*args))[1])
    _, whole = page_of(school)
    first = next(len(base64.b64decode(a["href"].partition(",")[2])) for a, _ in whole.all("image"))
    assert len(read) == 11
    read.clear()
    monkeypatch.setattr(report_module, "FACE_BYTES", first + 10)
    text, page = page_of(school)
    assert (len(page.all("image")), len(read)) == (1, 2)
    assert "(left out to keep the file small)" in text
    assert "its picture is gone" not in text


@pytest.mark.parametrize("damage", [lambda data: b"no picture", lambda data: data[: len(data) // 2], lambda data: b""])
def test_a_damaged_crop_is_said_in_its_place(school, tmp_path, damage):
    _, whole = page_of(school)
    path = sorted(path for path in (tmp_path / "crops").rglob("*") if path.is_file())[0]
    path.write_bytes(damage(path.read_bytes()))
    text, page = page_of(school)
    assert len(page.all("image")) == len(whole.all("image")) - 1
    assert "(its picture cannot be read)" in text


def test_no_picture_carries_what_the_camera_wrote_beside_it(school, tmp_path):
    path = tmp_path / "photos" / "m" / "2026-09-14" / "0.jpg"
    exif = Image.Exif()
    exif[0x010F] = "camera of somebody"
    Image.open(path).save(path, exif=exif)
    _, page = page_of(school, "2026-09-14")
    (photo,) = [base64.b64decode(a["src"].partition(",")[2]) for a, _ in page.all("img")]
    assert dict(Image.open(io.BytesIO(photo)).getexif()) == {}


def test_questions_show_the_candidates_side_by_side(school, database):
    _, before = school()
    bold, rtl = (next(s for s in before.students if s.name == name) for name in (BOLD, RTL))
    with database.connection() as connection:
        connection.execute(
            "UPDATE assignments SET state = 'needs_review', runner_up_id = %s WHERE crop_id = ANY(%s)",
            [rtl.student_id, bold.crop_ids],
        )
    context, review = school()
    question = review.questions[0]
    text = Page(report_html(context, review, MADE_AT)).one(question.key)
    assert f"Are these 2 faces from 2026-09-07 {BOLD} or \u2068{RTL}\u2069?" in text
    assert text.count("similarity") >= 2
    assert "In question" in text


def test_a_class_without_a_session_is_said_to_be_so(embedded_class, database):
    embedded_class.enrol("m", "Ada")
    context = default_context()
    text = report_html(context, read_review(context, "m"), MADE_AT)
    assert "No session has been processed yet." in Page(text).one("register")


def test_the_csv_has_a_row_for_each_cell_and_no_formula(school):
    _, review = school()
    rows = list(csv.DictReader(io.StringIO(report_csv(review))))
    assert list(rows[0]) == list(EVIDENCE_COLUMNS)
    assert len(rows) == len(review.cells)
    assert {row["student"] for row in rows} >= {f"'{SUM}", RTL, BOLD}
    (row,) = [r for r in rows if r["student"] == RTL and r["session"] == "2026-09-07"]
    assert (row["status"], row["decided_by"]) == ("present", "knn")
    assert float(row["similarity"]) > 0.5
    assert "1 face in 1 of 2 photos shows" in row["why"]


def test_the_workbook_reads_back_as_register_evidence_and_questions(school):
    _, first = school()
    sum_id = next(s.student_id for s in first.students if s.name == SUM)
    DecisionService("ann").mark_attendance(first.sessions[0].session_id, sum_id, "excused", "@ill")
    _, review = school()
    workbook = load_workbook(io.BytesIO(report_xlsx(review)))
    assert workbook.sheetnames == ["Register", "Evidence", "Unsure"]
    register = {row[0].value: row for row in workbook["Register"].iter_rows(min_row=2)}
    assert [cell.value for cell in register[SUM][1:]] == ["excused (by hand)", "present", 1, 1, 1]
    assert [cell.value for cell in register[RTL][1:3]] == ["present", "present"]
    assert [cell.value for cell in register["present"][1:3]] == [2, 2]
    evidence = list(workbook["Evidence"].iter_rows(min_row=2))
    assert len(evidence) == len(review.cells)
    assert "@ill" in {row[7].value for row in evidence}
    assert len(list(workbook["Unsure"].iter_rows(min_row=2))) == len(review.questions) == 1
    cells = [cell for sheet in workbook for row in sheet.iter_rows() for cell in row]
    assert all(cell.data_type != "f" for cell in cells)
    assert {cell.data_type for cell in cells if cell.value == SUM} == {"s"}


@pytest.mark.parametrize("letter", ["x", "😀"])
def test_a_text_beyond_a_cell_is_shortened_in_the_workbook_and_says_so(school, letter):
    _, review = school()
    review.cells[0].why = [letter * 40_000]
    review.cells[1].why = ["y" * 20_000]
    workbook = load_workbook(io.BytesIO(report_xlsx(review)))
    whys = [row[-1].value for row in workbook["Evidence"].iter_rows(min_row=2)]
    assert len(whys) == len(review.cells)
    # Excel counts in UTF-16.
    assert 32_700 < len(whys[0].encode("utf-16-le")) // 2 <= 32_767
    kept, left_out = re.fullmatch(f"({letter}+)… \\(([0-9]+) characters left out\\)", whys[0]).groups()
    whole = next(row["why"] for row in csv.DictReader(io.StringIO(report_csv(review))))
    assert len(kept) + int(left_out) == len(whole)
    assert whys[1].startswith("y" * 20_000)
    assert "left out" not in whys[1]


def test_a_row_of_the_evidence_has_the_number_by_which_sentences_call_somebody_without_a_name(school):
    _, review = school()
    unknown = next(s for s in review.students if s.kind == "unknown")
    rows = [row for row in csv.DictReader(io.StringIO(report_csv(review))) if row["student"] == unknown.name]
    assert rows
    assert {f"Unnamed person {row['student_id']}" for row in rows} == {unknown.label}


def test_the_json_is_the_review(school):
    _, review = school()
    text = report_json(review)
    assert (
        Review.model_validate_json(text.replace('"unusable_reasons"', '"crop_path":null,"unusable_reasons"'))
        is not None
    )
    assert "crop_path" not in text


@pytest.mark.slow
def test_it_can_be_read_on_a_phone_and_by_keyboard_in_a_browser(school, open_browser, tmp_path):
    context, review = school()
    path = tmp_path / "report.html"
    path.write_text(report_html(context, review, MADE_AT))
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 360, "height": 740}, java_script_enabled=True)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda request: complaints.append(request.url) if request.url[:5] == "http:" else None)
        page.goto(path.as_uri())
        for width in (360, 768, 1280):
            page.set_viewport_size({"width": width, "height": 740})
            assert page.evaluate("document.documentElement.scrollWidth") == width
        contrast, text = page.evaluate(LOWEST_CONTRAST)
        assert contrast >= 4.5, text

        # Boxes lie where the faces are.
        face = review.sessions[0].photos[0].faces[1]
        photo = page.locator("img").first.bounding_box()
        box = page.locator(f"#b{face.crop_id}").bounding_box()
        assert photo is not None
        assert box is not None
        assert (box["x"] - photo["x"]) / photo["width"] == pytest.approx(face.box[0] / 1000, abs=0.005)
        assert box["width"] / photo["width"] == pytest.approx(face.box[2] / 1000, abs=0.005)

        # The first key leads past everything to the register, and a cell's link to its reasons.
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the register"
        page.keyboard.press("Enter")
        assert page.url.endswith("#register")
        cell = review.cells[0]
        page.locator(f'a[href="#c{cell.student_id}-{cell.session_id}"]').first.click()
        assert page.locator(":target").inner_text().startswith(f"{BOLD}, 2026-09-07:")

        # So does the student's name by keyboard, and from there back to the row, where the keyboard goes on.
        page.locator(f"#row{cell.student_id}").focus()
        page.keyboard.press("Enter")
        assert page.locator(":target").inner_text().startswith(BOLD)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "↑ back to the row"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == f"row{cell.student_id}"

        # The parts of the report can all be seen on a phone.
        page.set_viewport_size({"width": 360, "height": 740})
        for part in page.get_by_role("navigation").get_by_role("link").all():
            place = part.bounding_box()
            assert place is not None
            assert place["x"] >= 0
            assert place["x"] + place["width"] <= 360
        page.emulate_media(media="print")
        assert not page.get_by_role("navigation").is_visible()
    assert complaints == []


def test_the_legend_says_only_what_holds_of_a_number_and_of_a_face_without_a_name(school):
    _, page = page_of(school)
    legend = page.one("legend")
    assert "The number stays the same" not in legend
    assert "others who are named do not change it" in legend
    assert "where entries are merged one of the numbers is left" in legend
    assert "nobody of the class" not in legend
    assert "Reclustering plan" in {t for _, t in page.all("dt")}


def test_a_cell_that_an_applied_plan_has_changed_names_it_in_the_file(school, database):
    _, first = school()
    ids = {student.name: student.student_id for student in first.students}
    moved = next(s for s in first.students if s.name == SUM).crop_ids[-1]
    with database.connection() as connection:
        connection.execute("UPDATE assignments SET student_id = %s WHERE crop_id = %s", [ids[BOLD], moved])
    AttendanceService(database, "dlib").register_session(SessionKey("m", "2026-09-14"))
    service = ReclusteringService()
    plan = service.plan("m", "dlib", ReclusteringConfig())
    service.apply(plan.plan_id, "ann", "<i>after</i> the holidays")
    text, page = page_of(school)
    assert "<i>after</i>" not in text
    session_id = first.sessions[1].session_id
    for name, changed in ((BOLD, "made this “absent” from “present”"), (SUM, "made this “present” from “absent”")):
        evidence = page.one(f"c{ids[name]}-{session_id}")
        words = rf"ann applied reclustering plan {plan.plan_id} on [\d-]+, which {changed}: <i>after</i> the holidays\."
        assert re.search(words, evidence), evidence
    assert f"took this face from {BOLD} and gave it to {SUM}" in page.one(f"c{ids[BOLD]}-{session_id}")
