"""Whatever people write, no spreadsheet calculates it, and nothing of it is lost."""

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from pipelines.services.spreadsheet import csv_text

CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("=+-@\t\n'\","))


@given(st.lists(st.lists(CELLS, min_size=2, max_size=4), min_size=1, max_size=4))
def test_no_text_begins_a_formula_and_all_of_it_comes_back(rows):
    read = list(csv.reader(io.StringIO(csv_text(rows), newline="")))
    assert [len(row) for row in read] == [len(row) for row in rows]
    for found, written in zip(read, rows, strict=True):
        for cell, text in zip(found, written, strict=True):
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\n"))
            assert cell in (text, f"'{text}")


def test_numbers_stay_numbers():
    assert csv_text([[-0.5, None, 3, "-0.5"]]) == "-0.5,,3,'-0.5\n"
