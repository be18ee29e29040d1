"""Every error that the engine raises on purpose; its message says what was wrong, where, and what would be right."""

from __future__ import annotations


class InfluenceError(Exception):
    """Base of all errors raised on purpose by ``influence_engine``.

    Attributes:
        code: A stable, machine-readable name of the kind of error (``bad_data``, ``digest_mismatch`` ...).
        field: The config key, column, file or argument that the error is about, where there is one.
    """

    code = "influence_error"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


def reason_of(error: Exception) -> str:
    """What an error says: its message where it was raised on purpose, else its kind, too."""
    return error.message if isinstance(error, InfluenceError) else f"{type(error).__name__}: {error}"


class SettingsError(InfluenceError):
    """A setting has a value that cannot be used."""

    code = "bad_settings"


class DataError(InfluenceError):
    """Training, validation or query data cannot be used as they are."""

    code = "bad_data"


class InputError(DataError):
    """A query (not the training data) cannot be used."""

    code = "bad_input"


class ModelError(InfluenceError):
    """A model cannot be loaded, or has parts for which no influence can be computed."""

    code = "bad_model"


class RecordError(InfluenceError):
    """A recorded training run is missing, incomplete or inconsistent."""

    code = "bad_record"


class DigestMismatchError(InfluenceError):
    """A file, model or data set is not the one that was recorded."""

    code = "digest_mismatch"


class IndexFormatError(InfluenceError):
    """An index is missing, incomplete, of an unknown version, or damaged."""

    code = "bad_index"


class TierUnavailableError(InfluenceError):
    """This model and index do not have the requested tier (estimated, refined, replayed, measured)."""

    code = "tier_unavailable"


class ResourceError(InfluenceError):
    """Too little disk or memory for the request; the message says what would fit."""

    code = "too_little_room"
