"""Tables for spreadsheets, in which no text becomes a formula."""

import csv
import io
from collections.abc import Iterable, Sequence

# A cell that begins with one of these is a formula to spreadsheets, or becomes one once the tab or the line end is
# cut off: OWASP, "CSV injection". Students' names and teachers' notes are anybody's text.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; None is an empty cell. A text that a spreadsheet would calculate has an apostrophe before it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([[_harmless(cell) for cell in row] for row in rows])
    return out.getvalue()


def _harmless(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell
