"""Errors that a person can act on: one clear sentence naming the thing and the remedy."""


class AttendanseeError(Exception):
    """Base of every error whose message is meant for a person; front doors print it without a traceback."""


class PhotoError(AttendanseeError):
    """A photo cannot be used: the message is the reason recorded for that photo; other photos go on."""


class WeightsError(AttendanseeError):
    """A model's weights are missing or wrong: the message names file, place and command."""


class ModelError(AttendanseeError):
    """A model name is unknown or an engine cannot run it."""


class DatabaseError(AttendanseeError):
    """The database cannot be started, reached or used."""


class PhotoStoreError(AttendanseeError):
    """A photo root cannot be listed or read; never to be taken for an empty folder."""


class ParameterError(AttendanseeError):
    """A parameter is missing, of the wrong type or out of its range: the message names it and the range."""


class UnknownIdError(AttendanseeError):
    """There is no class, session, photo, face crop or student of that id."""


class ConflictError(AttendanseeError):
    """What was asked for contradicts what is stored, such as a name that another student has."""


class ClassBusyError(AttendanseeError):
    """The class is being processed by somebody else just now: the same call succeeds later."""
