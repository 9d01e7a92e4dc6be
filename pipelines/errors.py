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
