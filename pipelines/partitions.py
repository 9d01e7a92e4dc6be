"""Partitions, and the one place that knows how a session's key names its class.

A class key is the class folder's name; a session key is `<class>__<session>`. The reserved session `enrol` holds the
portraits of known students.
"""

import re
from typing import NamedTuple

import dagster as dg

from pipelines.errors import AttendanseeError

ENROL = "enrol"
SEPARATOR = "__"

# What runs carry, whoever starts them: the class that they process, and the embedding model where it is one.
CLASS_TAG = "attendansee/class"
MODEL_TAG = "attendansee/model"
# And what a session's photos, its class's portraits and the settings were when the run was asked for.
FINGERPRINT_TAG = "attendansee/fingerprint"

sessions = dg.DynamicPartitionsDefinition(name="sessions")
classes = dg.DynamicPartitionsDefinition(name="classes")

_PART = re.compile(r"[A-Za-z0-9_.-]+")


class BadNameError(AttendanseeError):
    """A folder name that cannot be part of a partition key."""


class SessionKey(NamedTuple):
    """A session named by its class and its own name; `str()` gives the partition key."""

    class_name: str
    session_name: str

    def __str__(self) -> str:
        return f"{self.class_name}{SEPARATOR}{self.session_name}"

    @property
    def is_enrolment(self) -> bool:
        """True for the reserved session that holds portraits of known students."""
        return self.session_name == ENROL


def _check_part(kind: str, name: str) -> None:
    # Dagster reads `...` as a range of partitions and drops keys with `|` without a word.
    if not _PART.fullmatch(name) or "..." in name:
        raise BadNameError(
            f"The {kind} folder {name!r} cannot be used: rename it with letters, digits, '_', '.' and '-' only (no '...')."
        )


def session_key(class_name: str, session_name: str) -> SessionKey:
    """The validated key of a session; raises BadNameError with a remedy for a name that cannot be one."""
    _check_part("class", class_name)
    _check_part("session", session_name)
    if SEPARATOR in class_name or class_name.endswith("_"):
        raise BadNameError(
            f"The class folder {class_name!r} cannot be used: rename it without '__' and without a '_' at its end."
        )
    return SessionKey(class_name, session_name)


def parse_session_key(key: str) -> SessionKey:
    """The inverse of `str(session_key(...))`; raises BadNameError for a key that no folder could have given."""
    class_name, separator, session_name = key.partition(SEPARATOR)
    if not separator:
        raise BadNameError(f"The session key {key!r} cannot be used: it must read <class>{SEPARATOR}<session>.")
    return session_key(class_name, session_name)


def class_of(partition_key: str) -> str:
    """The class that a partition is about: that of a session's key, or the key itself, which is a class's then."""
    try:
        return parse_session_key(partition_key).class_name
    except BadNameError:
        return partition_key
