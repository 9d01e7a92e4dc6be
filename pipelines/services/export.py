"""A class's review as tables: CSV, XLSX and JSON."""

import io
from datetime import datetime, timezone

from pipelines.services.review import Cell, Face, Review, explain_face
from pipelines.services.spreadsheet import csv_text

EVIDENCE_COLUMNS = (
    "class",
    "session",
    "date",
    "student",
    "status",
    "by_photos",
    "set_by_hand_by",
    "note",
    "faces",
    "doubtful_faces",
    "similarity",
    "runner_up",
    "runner_up_similarity",
    "margin",
    "decided_by",
    "run",
    "risk",
    "student_id",
    "why",
)
_UNSURE_COLUMNS = (
    "place",
    "settles",
    "question",
    "session",
    "candidate_1",
    "similarity_1",
    "candidate_2",
    "similarity_2",
    "faces",
)


# What a cell of a spreadsheet holds; of a longer text xlsxwriter writes nothing, and says so to nobody.
_CELL_LENGTH = 32_767


def report_json(found: Review) -> str:
    """The whole review, as the HTTP API gives it."""
    return found.model_dump_json(indent=2)


def report_csv(found: Review) -> str:
    """A row for each cell of the register with its evidence, see `evidence_rows`."""
    return csv_text([EVIDENCE_COLUMNS, *evidence_rows(found)])


def evidence_rows(found: Review) -> list[list[object]]:
    """A row for each cell: status, and the figures of the face that it rests on most, in words too.

    faces, doubtful_faces: ids of face crops. student: the name that commands take; `why` calls somebody without a name
    `Unnamed person` and the student_id. similarities are calibrated, margin is the lead over the runner-up in cosine
    similarity, risk as in `Cell`.
    """
    faces, names = found.faces(), found.names()
    sessions = {session.session_id: session for session in found.sessions}
    rows: list[list[object]] = []
    for cell in found.cells:
        session = sessions[cell.session_id]
        face = _strongest(cell, faces)
        decider = face.decider if face else None
        rows.append(
            [
                found.class_name,
                session.name,
                session.held_on,
                names[cell.student_id],
                cell.status,
                cell.by_photos,
                cell.mark and cell.mark.decided_by,
                cell.mark and cell.mark.note,
                " ".join(map(str, cell.crop_ids)),
                " ".join(map(str, cell.doubtful_ids)),
                face and face.similarity,
                names.get(face.runner_up_id) if face and face.runner_up_id is not None else None,
                face and face.runner_up_similarity,
                face and face.margin,
                decider and (decider.name or decider.by),
                decider and decider.run_id,
                cell.risk,
                cell.student_id,
                " ".join([*cell.why, *([explain_face(found, face)] if face else [])]),
            ]
        )
    return rows


def report_xlsx(found: Review) -> bytes:
    """A workbook with the sheets Register (students by sessions), Evidence and Unsure; no text in it is a formula."""
    import xlsxwriter

    out = io.BytesIO()
    options = {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False}
    with xlsxwriter.Workbook(out, {**options, "default_date_format": "yyyy-mm-dd"}) as workbook:
        # Else the same register would be another file each second.
        workbook.set_properties({"created": datetime(2000, 1, 1, tzinfo=timezone.utc).replace(tzinfo=None)})
        head = workbook.add_format({"bold": True, "text_wrap": True, "valign": "top", "bottom": 1})
        share = workbook.add_format({"num_format": "0 %"})
        sheets: list[tuple[str, list[list[object]], list[int]]] = [
            ("Register", _register_rows(found), [32]),
            ("Evidence", [list(EVIDENCE_COLUMNS), *evidence_rows(found)], [16, 14, 12, 32]),
            ("Unsure", [list(_UNSURE_COLUMNS), *_question_rows(found)], [6, 8, 60, 14, 28, 12, 28, 12]),
        ]
        for name, rows, widths in sheets:
            sheet = workbook.add_worksheet(name)
            sheet.freeze_panes(1, 1 if name == "Register" else 0)
            for column, width in enumerate(widths):
                sheet.set_column(column, column, width)
            for place, row in enumerate(rows):
                for column, cell in enumerate(row):
                    is_rate = name == "Register" and place and isinstance(cell, float)
                    style = head if place == 0 else share if is_rate else None
                    if isinstance(cell, str):
                        sheet.write_string(place, column, _fitting(cell), style)
                    elif cell is not None:
                        sheet.write(place, column, cell, style)
            if name == "Evidence" and len(rows) > 1:
                sheet.autofilter(0, 0, len(rows) - 1, len(EVIDENCE_COLUMNS) - 1)
    return out.getvalue()


def _register_rows(found: Review) -> list[list[object]]:
    """Students by sessions, with a note where a person has set the cell; then rates, then what each session had."""
    cells = {(cell.student_id, cell.session_id): cell for cell in found.cells}
    rows: list[list[object]] = [
        ["student", *(_titled(s.name, s.held_on) for s in found.sessions), "present", "counted", "rate"]
    ]
    for student in found.students:
        if not student.in_register:
            continue
        row: list[object] = [student.name]
        for session in found.sessions:
            cell = cells.get((student.student_id, session.session_id))
            row.append(None if cell is None else f"{cell.status} (by hand)" if cell.mark else cell.status)
        rows.append([*row, student.present, student.counted, student.present_rate])
    rows.append([])
    for status in ("present", "absent", "unsure", "excused", "unknown", "visitor"):
        rows.append([status, *(session.counts[status] for session in found.sessions)])
    rows.append(["present, rate", *(session.present_rate for session in found.sessions)])
    # Text, for the other numbers with a fraction in this sheet are rates.
    rows.append(["expected false present", *(f"{session.expected_false_present:.2f}" for session in found.sessions)])
    return rows


def _question_rows(found: Review) -> list[list[object]]:
    """The unsure queue in its order."""
    names, sessions = found.names(), {session.session_id: session.name for session in found.sessions}
    rows: list[list[object]] = []
    for place, question in enumerate(found.questions, start=1):
        candidates = [(names[c.student_id], c.similarity) for c in question.candidates[:2]]
        candidates += [("", None)] * (2 - len(candidates))
        session = sessions.get(question.session_id) if question.session_id is not None else "all"
        asked = question.text if question.kind == "which" else f"{question.text} ({names[question.student_id]})"
        crops = " ".join(map(str, question.crop_ids))
        rows.append([place, question.settles, asked, session, *candidates[0], *candidates[1], crops])
    return rows


def _strongest(cell: Cell, faces: dict[int, Face]) -> Face | None:
    """The face that the cell rests on most: one that a person has confirmed, else the most similar one."""
    of_cell = [faces[crop_id] for crop_id in (cell.crop_ids or cell.doubtful_ids)]
    return max(
        of_cell,
        key=lambda face: (
            face.decider is not None and face.decider.by == "person",
            face.similarity or 0,
            -face.crop_id,
        ),
        default=None,
    )


def _fitting(text: str) -> str:
    """The text, or as much of it as a cell holds with the number of characters that are left out.

    Excel counts in UTF-16, where a character takes one unit or two, and so does this.
    """
    units = len(text.encode("utf-16-le", "surrogatepass")) // 2
    if units <= _CELL_LENGTH:
        return text
    room = _CELL_LENGTH - len(f"… ({len(text)} characters left out)")
    kept = text.encode("utf-16-le", "surrogatepass")[: 2 * room].decode("utf-16-le", "ignore")
    return f"{kept}… ({len(text) - len(kept)} characters left out)"


def _titled(name: str, held_on: object) -> str:
    return name if held_on is None or str(held_on) == name else f"{name}\n{held_on}"
