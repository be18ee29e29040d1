"""Values from file, profile, environment and arguments, laid over one another; each remembers where it is from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from audit_service.config.errors import ConfigError
from audit_service.config.yaml_text import Path, YamlError, read_scalar

PREFIX = "BENTO_AUDIT_"
"""Begins the names of environment variables that override keys; ``__`` separates the keys of a path."""

ENABLED_VARIABLE = "AUDIT_ENABLED"
"""Overrides the key ``enabled`` of every config: ``AUDIT_ENABLED=0`` switches all audits off."""

RESERVED = {
    "BENTO_AUDIT_CONFIG": "the config to use",
    "BENTO_AUDIT_STATE": "the folder for predictions, ledger, jobs and keys; {name} in it is the config's name",
    "BENTO_AUDIT_DATA": "the folder for fetched data",
    "BENTO_AUDIT_ACCEPT_LICENCE": "licences of packaged data that fit this use, with commas between them",
    "BENTO_AUDIT_DEBUG": "show full tracebacks",
    "BENTO_AUDIT_FORBID_SKIPS": "tests must not be skipped",
}
"""Variables with the prefix that are no keys."""


@dataclass(frozen=True)
class Origin:
    """Where a value is from: ``where`` it was written, and the ``key`` it has there."""

    where: str
    key: str


@dataclass
class Layers:
    """Merged values.

    Attributes:
        values: Plain nested dictionaries and lists.
        origins: Path -> where its value is from, for each key that was given.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path, Origin] = field(default_factory=dict)

    def lay(self, values: Mapping[str, Any], origins: Mapping[Path, Origin]) -> None:
        """Lays values on top: mappings are merged key by key, anything else replaces what was there."""
        for path in _leaves(values):
            # What is replaced as a whole, a list above all, leaves nothing behind.
            for stale in [known for known in self.origins if len(known) > len(path) and known[: len(path)] == path]:
                del self.origins[stale]
        self.values = _merged(self.values, values)
        self.origins.update(origins)

    def copy(self) -> Layers:
        """Layers that can be laid upon without changing these."""
        return Layers(self.values, dict(self.origins))

    def origin(self, path: Path) -> Origin:
        """Where the value at a path is from; if it was not given, where the innermost given mapping around it is."""
        for length in range(len(path), -1, -1):
            found = self.origins.get(path[:length])
            if found is not None:
                inner = ".".join(map(str, path[length:]))
                return Origin(found.where, ".".join(part for part in (found.key, inner) if part))
        return Origin("config", ".".join(map(str, path)))

    def holds(self, path: Path) -> bool:
        """Whether there is a value at a path."""
        value: Any = self.values
        for part in path:
            inside = (
                part in value if isinstance(value, Mapping) else isinstance(value, list) and part in range(len(value))
            )
            if not inside:
                return False
            value = value[part]
        return True


def from_environment(environment: Mapping[str, str]) -> Iterator[tuple[Path, Any, Origin]]:
    """Overrides by environment variables: path, value, origin.

    Raises:
        ConfigError: a value is not YAML.
    """
    names = {
        variable: tuple(variable.removeprefix(PREFIX).lower().split("__"))
        for variable in sorted(environment)
        if variable.startswith(PREFIX) and variable not in RESERVED
    }
    if environment.get(ENABLED_VARIABLE, "").strip():
        names[ENABLED_VARIABLE] = ("enabled",)  # the last one, which counts
    for variable, path in names.items():
        where = f"environment variable {variable}"
        try:
            value = read_scalar(environment[variable])
        except YamlError as error:
            raise ConfigError(f"{where}: {error.message}", field=".".join(path)) from error
        yield path, value, Origin(where, ".".join(path))


def from_arguments(overrides: Mapping[str, Any]) -> Iterator[tuple[Path, Any, Origin]]:
    """Overrides by dotted key, such as ``{"finetune.epochs": 2}``: path, value, origin."""
    for key, value in overrides.items():
        yield tuple(key.split(".")), value, Origin("override", key)


def nested(path: Path, value: Any) -> dict[str, Any]:
    """``("a", "b"), 1`` -> ``{"a": {"b": 1}}``."""
    for part in reversed(path):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def variable(path: Path) -> str:
    """The environment variable that overrides the key at a path."""
    return PREFIX + "__".join(map(str, path)).upper()


def _merged(below: Any, above: Any) -> Any:
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{key: _merged(below[key], value) if key in below else value for key, value in above.items()}}


def _leaves(values: Any, above: Path = ()) -> Iterator[Path]:
    """Paths of all values that are not mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key)
