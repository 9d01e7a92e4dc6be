import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.partitions import BadNameError, parse_session_key, session_key

part = st.text(alphabet="abcXYZ019_.-", min_size=1, max_size=12)


@given(part, part)
def test_every_accepted_key_reads_back_as_the_same_class_and_session(class_name: str, session_name: str) -> None:
    try:
        key = session_key(class_name, session_name)
    except BadNameError:
        return
    assert parse_session_key(str(key)) == (class_name, session_name)


@pytest.mark.parametrize("bad", ["Math 101", "a|b", "a...b", "", "é", "a/b", "a__b", "a_"])
def test_a_bad_class_folder_is_named_in_one_sentence(bad: str) -> None:
    with pytest.raises(BadNameError, match="rename it") as error:
        session_key(bad, "s1")
    assert repr(bad) in str(error.value)


def test_a_key_without_a_session_is_refused() -> None:
    with pytest.raises(BadNameError, match="<class>__<session>"):
        parse_session_key("math")
