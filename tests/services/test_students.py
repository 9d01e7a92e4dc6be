"""Rosters and lists of students: any file gives a report, importing twice changes nothing."""

import csv
import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.database import catalog
from pipelines.errors import AttendanseeError, ClassBusyError, ParameterError, UnknownIdError
from pipelines.partitions import BadNameError, parse_session_key
from pipelines.services.attendance import AttendanceService
from pipelines.services.context import default_context
from pipelines.services.decisions import DecisionService
from pipelines.services.session_assignment import AssignmentConfig, SessionAssignmentService
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService
from pipelines.services.students import COLUMNS, ImportAnswer, StudentService, parse_roster, read_roster

HEAD = "first_name,last_name,student_id,email\n"


@pytest.fixture
def service(database) -> StudentService:
    return StudentService("a teacher")


@pytest.fixture
def read(service):
    def run(text: str, class_name: str = "m") -> ImportAnswer:
        return service.import_csv(class_name, text, create_class=True)

    return run


def test_a_class_that_is_not_there_is_made_only_where_that_is_said(service, read, database):
    for name in ("Math101", "Math102", "Art"):
        read(HEAD + "Ada,Lovelace,1,\n", name)
    with pytest.raises(UnknownIdError, match=r"There is no class 'math11': name Math101 or Math102, or make it with"):
        service.import_csv("math11", HEAD + "Ada,Lovelace,1,\n")
    with pytest.raises(UnknownIdError, match=r"There is no class 'Zoology': choose one that there is, or make it with"):
        service.import_csv("Zoology", HEAD + "Ada,Lovelace,1,\n")
    with database.connection() as connection:
        assert catalog.class_names(connection) == ["Art", "Math101", "Math102"]
    assert service.import_csv("Art", HEAD + "Ada,Lovelace,1,\n").unchanged == 1


def test_namesakes_are_told_how_to_be_told_apart(read):
    answer = read(HEAD + "Ann,Lee,S1,\nAnn,Lee,S2,\n")
    (refused,) = answer.refused
    assert refused.line == 3
    assert "such as 'Ann Lee (S2)'" in refused.reason
    (refused,) = read(HEAD + "Ann,Lee,S2,\n").refused
    assert "student_id S1" in refused.reason
    assert "such as 'Ann Lee (S2)'" in refused.reason
    assert changes(read(HEAD + "Ann,Lee,S1,\nAnn,Lee (S2),S2,\n")) == (1, 0, 1, 0)


def listed(service, class_name: str = "m") -> list[tuple]:
    return [(s.name, s.student_number, s.email) for s in service.list(class_name).students]


def changes(answer: ImportAnswer) -> tuple[int, int, int, int]:
    return len(answer.added), len(answer.updated), answer.unchanged, len(answer.refused)


@pytest.mark.parametrize(
    "content",
    [
        "first_name,last_name,student_id,email\nAda,Lovelace,007,ada@school.org\n",
        "\ufefffirst_name;last_name;student_id;email\r\nAda;Lovelace;007;ada@school.org\r\n".encode(),
        'EMAIL, Student_ID ,LAST_NAME,First_Name\n"ada@school.org","007",Lovelace,"Ada"',
        b"\n\nfirst_name,last_name,student_id,email\n\n,,,\n Ada , Lovelace , 007 , ada@school.org \n\n",
        'email;"note, private";student_id;first_name;last_name\nada@school.org;"a;b\nc";007;Ada;Lovelace\n',
        "first_name,last_name,student_id,email\rAda,Lovelace,007,ada@school.org\r",
        "sep=;\r\nfirst_name;last_name;student_id;email\r\nAda;Lovelace;007;ada@school.org\r\n",
        '\ufeff"sep=,"\nfirst_name,last_name,student_id,email\nAda,Lovelace,007,ada@school.org\n'.encode(),
        "SEP=;;;;\rfirst_name;last_name;student_id;email\rAda;Lovelace;007;ada@school.org\r",
        "sep=\t\nfirst_name\tlast_name\tstudent_id\temail\nAda\tLovelace\t007\tada@school.org\n",
    ],
)
def test_a_roster_is_read_whatever_wrote_it(content):
    roster = parse_roster(content)
    assert [(r.name, r.student_number, r.email) for r in roster.rows] == [("Ada Lovelace", "007", "ada@school.org")]
    assert roster.refused == []


def test_lines_keep_their_numbers_below_excels_own_first_line():
    roster = parse_roster("sep=;\nfirst_name;last_name\nAda;Lovelace\n;\u200b\n")
    assert [row.line for row in roster.rows] == [3]
    assert [row.line for row in roster.refused] == [4]


def test_columns_that_are_not_known_are_noted_and_two_are_optional():
    roster = parse_roster("last_name,house,first_name\nLovelace,red,Ada\n")
    assert [(r.line, r.name, r.student_number) for r in roster.rows] == [(2, "Ada Lovelace", None)]
    assert roster.notes == ["Left out: the column(s) 'house'."]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        (HEAD, "names no student"),
        ("first_name;email\nAda;\n", "lacks the column(s) last_name"),
        ("Ada,Lovelace\n", "first_name, last_name"),
        ("first_name,last_name,email,Email\nA,B,,\n", "email twice"),
        ("first_name,last_name\nZoë,B\n".encode("latin-1"), "not UTF-8"),
        ("first_name,last_name\nA,B\n".encode("utf-16"), "not UTF-8"),
        ('first_name,last_name\nA,B\n"C,D\nE,F\n', "from line 3 on"),
        (HEAD + "x" * 10_000_001, "larger than"),
    ],
)
def test_a_file_that_is_no_roster_is_refused_in_one_sentence(content, words):
    with pytest.raises(ParameterError) as raised:
        parse_roster(content)
    assert words in str(raised.value)


def test_a_row_with_a_mistake_is_refused_with_its_line_and_reason_and_the_others_count():
    roster = parse_roster(
        HEAD
        + "Ada,Lovelace,1,ada@school.org\n"
        + ",,2,\n"
        + "Ben,Bad,3,ben at school\n"
        + '"Two\nlines",Name,4,\n'
        + "Cem,Copy,1,\n"
        + "Ada,Lovelace,5,\n"
        + "Dan,Comma,6,,Jr.\n"
        + f"Long,Name,7,{'x' * 250}@school.org\n"
        + f"{'x' * 201},Name,8,\n"
        + "Cher,,9,\n"
    )
    assert [row.name for row in roster.rows] == ["Ada Lovelace", "Cher"]
    expected = {3: "empty", 4: "no address", 5: "cannot be shown", 7: "line 2", 8: "line 2", 9: "more cells"}
    expected |= {10: "no address", 11: "at most 200"}
    assert {r.line: expected[r.line] for r in roster.refused if expected[r.line] in r.reason} == expected


CELL = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]), max_size=20).map(
    lambda text: f"{text.strip()}a".strip()
)


@given(
    names=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8),
    order=st.permutations(COLUMNS),
    delimiter=st.sampled_from(",;"),
    newline=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
)
def test_what_is_written_as_csv_is_read_back(names, order, delimiter, newline, bom):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, order, delimiter=delimiter, lineterminator=newline, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for number, (first, last) in enumerate(names):
        writer.writerow({"first_name": first, "last_name": last, "student_id": str(number), "email": ""})
    roster = parse_roster(out.getvalue().encode("utf-8-sig" if bom else "utf-8"))
    assert len(roster.rows) + len(roster.refused) == len(names)
    # Only a name that occurs twice is refused.
    assert all("is that of line" in refused.reason for refused in roster.refused)
    assert [(row.line, row.student_number) for row in roster.rows] == [
        (int(row.student_number) + 2, row.student_number) for row in roster.rows
    ]


@given(st.one_of(st.text(), st.binary(), st.text().map(lambda rest: HEAD + rest)))
def test_any_content_gives_a_report_or_one_sentence(content):
    try:
        roster = parse_roster(content)
    except AttendanseeError:
        return
    assert roster.model_dump_json().encode()
    lines = [r.line for r in roster.rows + roster.refused]
    assert len(set(lines)) == len(lines)


def test_a_roster_before_the_first_photo_makes_the_class_and_importing_it_twice_changes_nothing(service, read):
    text = HEAD + "Ada,Lovelace,1,ada@school.org\nBen,Bold,,\n,,3,\n"
    first = read(text)
    assert (first.status, changes(first)) == ("partial", (2, 0, 0, 1))
    assert [(row.line, row.name) for row in first.added] == [(2, "Ada Lovelace"), (3, "Ben Bold")]
    assert (first.refused[0].line, first.class_name) == (4, "m")
    before = service.list("m")
    assert changes(read(text)) == (0, 0, 2, 1)
    assert service.list("m") == before
    assert listed(service) == [("Ada Lovelace", "1", "ada@school.org"), ("Ben Bold", None, None)]


def test_the_number_is_the_key_and_the_name_where_there_is_none(service, read):
    read(HEAD + "Ada,Lovelace,1,\nBen,Bold,,\n")
    # A correction of the name, a number that comes later, an address that comes later; an empty cell erases nothing.
    assert changes(read(HEAD + "Ada,King,1,\nBen,Bold,2,\n")) == (0, 2, 0, 0)
    assert changes(read(HEAD + "Ben,Bold,,ben@school.org\nAda,King,1,\n")) == (0, 1, 1, 0)
    assert listed(service) == [("Ada King", "1", None), ("Ben Bold", "2", "ben@school.org")]


def test_a_name_that_another_student_has_is_refused_and_the_others_go_on(service, read):
    read(HEAD + "Ada,Lovelace,1,\nBen,Bold,2,\n")
    answer = read(HEAD + "Ada,Lovelace,9,\nAda,Lovelace II,2,\nCem,Calm,3,\n")
    assert [(r.line, "student_id 1" in r.reason) for r in answer.refused] == [(2, True)]
    assert changes(answer) == (1, 1, 0, 1)
    answer = read(HEAD + "Cem,Calm,1,\n")
    assert "another student 'Cem Calm'" in answer.refused[0].reason
    assert [name for name, _, _ in listed(service)] == ["Ada Lovelace", "Ada Lovelace II", "Cem Calm"]


def test_an_older_roster_does_not_undo_what_people_said_since(service, read):
    text = HEAD + "Ada,Lovelace,1,\nBen,Bold,,\nBenny,Bold,,bb@school.org\n"
    ids = [row.student_id for row in read(text).added]
    teacher = DecisionService("a teacher")
    teacher.rename(ids[0], "Ada King")
    teacher.merge(ids[2], ids[1])
    teacher.rename(ids[1], "Ben")
    expected = [("Ada King", "1", None), ("Ben", None, "bb@school.org")]
    for _ in range(2):
        assert changes(read(text)) == (0, 0, 3, 0)
        assert listed(service) == expected
    # Somebody new has the name that another student had before.
    answer = read(HEAD + "Ada,King,1,\nAda,Lovelace,7,\n")
    assert changes(answer) == (1, 0, 1, 0)


def test_a_merged_students_row_changes_nothing_of_the_one_who_was_kept(service, read):
    text = HEAD + "Ann,Lee,1,ann@school.org\nAnne,Lee,2,anne@school.org\n"
    ann, anne = (row.student_id for row in read(text).added)
    DecisionService("a teacher").merge(anne, ann)
    for rows in (text, HEAD + "Anne,Lee,2,anne@school.org\nAnn,Lee,1,ann@school.org\n", text.replace(",2,", ",,")):
        assert changes(read(rows)) == (0, 0, 2, 0)
    assert listed(service) == [("Ann Lee", "1", "ann@school.org")]


def test_the_student_who_is_kept_takes_number_and_address_where_they_have_none(made_class, service, read):
    key = parse_session_key("m__1")
    made = made_class.session("m__1", [["ann"]])
    SessionClusteringService(made_class.database, "dlib", "v").cluster_session(key, ClusteringConfig())
    SessionAssignmentService(made_class.database, "dlib", "v").assign_session(key, AssignmentConfig())
    AttendanceService(made_class.database, "dlib").register_session(key)
    (added,) = read(HEAD + "Ann,Lee,1,ann@school.org\n").added
    (provisional,) = [s for s in service.list("m").students if s.provisional]
    assert (provisional.crops, provisional.sessions_present) == (len(made), 1)
    DecisionService("a teacher").merge(added.student_id, provisional.id)
    (kept,) = service.list("m").students
    assert (kept.id, kept.name, kept.student_number, kept.email) == (
        provisional.id,
        "Ann Lee",
        "1",
        "ann@school.org",
    )
    assert (kept.provisional, kept.crops, kept.sessions_present) == (False, 1, 1)
    assert changes(read(HEAD + "Ann,Lee,1,ann@school.org\n")) == (0, 0, 1, 0)


def test_a_student_of_the_roster_is_absent_where_somebody_looked(made_class, database, read):
    made_class.enrol("m", "ann")
    made_class.session("m__1", [["ann"]])
    for key in map(parse_session_key, ("m__enrol", "m__1")):
        SessionAssignmentService(database, "dlib", "v").assign_session(key, AssignmentConfig())
        AttendanceService(database, "dlib").register_session(key)
    read(HEAD + "Ben,Bold,1,\n")
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT t.status FROM attendance t JOIN students st ON st.id = t.student_id WHERE st.name = 'Ben Bold'"
        ).fetchall()
    assert rows == [("absent",)]


def test_a_roster_student_whose_portrait_is_removed_stays_in_the_class(made_class, database, read):
    made_class.enrol("m", "Ada Lovelace", "typo")
    read(HEAD + "Ada,Lovelace,1,\n")
    with database.connection() as connection:
        connection.execute("UPDATE images SET removed_at = now()")
        assert catalog.named_students(connection, catalog.find_class(connection, "m"), "dlib") == ["Ada Lovelace"]


def test_a_roster_names_a_class_that_a_folder_could_have_and_changes_nothing_else(service, read):
    with pytest.raises(BadNameError):
        read(HEAD + "Ada,Lovelace,1,\n", class_name="m__1")
    with pytest.raises(ParameterError):
        read("nothing")
    with pytest.raises(AttendanseeError, match="There is no class 'm'"):
        service.list("m")


def test_a_student_is_found_by_name_or_id(service, read):
    (ada,) = read(HEAD + "Ada,Lovelace,1,\n").added
    (other,) = read(HEAD + "Ben,Bold,1,\n", class_name="other").added
    assert service.find("m", "Ada Lovelace") == service.find("m", str(ada.student_id)) == ada.student_id
    for name in ("Ben Bold", str(other.student_id), "²"):
        with pytest.raises(UnknownIdError):
            service.find("m", name)


def test_a_roster_may_lie_in_any_store(tmp_path):
    import fsspec

    (tmp_path / "r.csv").write_bytes(b"x")
    with fsspec.filesystem("memory").open("/rosters/r.csv", "wb") as file:
        file.write(b"y")
    assert (read_roster(str(tmp_path / "r.csv")), read_roster("memory://rosters/r.csv")) == (b"x", b"y")
    for path in (str(tmp_path), str(tmp_path / "none.csv"), "nosuch://r.csv", "memory://rosters/none.csv"):
        with pytest.raises(ParameterError, match="cannot be read"):
            read_roster(path)


def test_the_list_counts_what_was_confirmed_before_any_run_and_what_the_active_model_assigned(
    made_class, database, service
):
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann", "bob"], ["ann"], ["ann"]])

    def counts() -> dict[str, int]:
        return {student.name: student.crops for student in service.list("m").students}

    assert counts() == {"ann": 1, "bob": 1}
    with database.connection() as connection:
        connection.execute("UPDATE classes SET active_model = 'dlib'")
        for model, crop_id, name in [
            ("dlib", made[0, "ann"], "ann"),
            ("dlib", made[1, "ann"], "ann"),
            ("facenet", made[2, "ann"], "ann"),
        ]:
            connection.execute(
                "INSERT INTO assignments (crop_id, model, state, student_id, decided_by) VALUES (%s, %s, 'assigned', %s, 'knn')",
                [crop_id, model, ids[name]],
            )
        # A person says otherwise; no run has written it yet.
        (class_id,) = connection.execute("SELECT id FROM classes").fetchone()
        connection.execute(
            "INSERT INTO decisions (class_id, kind, crop_id, student_id, decided_by) VALUES (%s, 'confirm', %s, %s, 't')",
            [class_id, made[1, "ann"], ids["bob"]],
        )
    assert counts() == {"ann": 2, "bob": 2}
    with database.connection() as connection:
        connection.execute("UPDATE images SET removed_at = now() WHERE path = 'm/1/1.jpg'")
    assert counts() == {"ann": 2, "bob": 1}


def test_an_import_waits_for_the_class(made_class, database):
    made_class.session("m__1", [["ann"]])
    impatient = StudentService("a teacher", context=replace(default_context(), lock_patience_s=0))
    with database.connection() as connection:
        catalog.lock_class(connection, catalog.find_class(connection, "m"))
        with pytest.raises(ClassBusyError):
            impatient.import_csv("m", HEAD + "Ada,Lovelace,1,\n")
    assert impatient.import_csv("m", HEAD + "Ada,Lovelace,1,\n").status == "success"


@pytest.mark.parametrize("turned", [False, True])
def test_a_former_name_is_another_students_where_a_row_of_the_file_has_the_first_one(service, read, turned):
    read(HEAD + "Ada,Lovelace,1,\n")
    (ada,) = service.list("m").students
    DecisionService("a teacher").rename(ada.id, "Ada King")
    # Number 1 is certain, whatever the order of the lines; the other Ada Lovelace is somebody new.
    rows = ["Ada,King,1,\n", "Ada,Lovelace,2,\n"]
    assert changes(read(HEAD + "".join(reversed(rows) if turned else rows))) == (1, 0, 1, 0)
    assert listed(service) == [("Ada King", "1", None), ("Ada Lovelace", "2", None)]
