"""The error that says what is wrong with a configuration."""

from __future__ import annotations

from influence_engine.errors import SettingsError


class ConfigError(SettingsError):
    """A configuration cannot be used; the message names file, line and key, what was found and what is allowed.

    Attributes:
        field: The first key at fault, such as ``finetune.learning_rate``, or the file.
    """

    code = "bad_config"
