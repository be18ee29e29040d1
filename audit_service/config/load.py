"""Finds a config by name, and lays file, profile, environment and arguments over one another."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from audit_service.config import validation_messages, yaml_text
from audit_service.config.errors import ConfigError
from audit_service.config.layers import Layers, Origin, from_arguments, from_environment, nested
from audit_service.config.settings import AuditConfig
from audit_service.config.yaml_text import YamlError
from influence_engine.data.sources.table import similar_path
from influence_engine.names import did_you_mean, listing

CONFIG_VARIABLE = "BENTO_AUDIT_CONFIG"
STATE_VARIABLE = "BENTO_AUDIT_STATE"
FOLDER = "configs"


def load_config(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> AuditConfig:
    """Reads a config. Later ones win: the file, the profile in use, the environment, ``overrides``.

    Args:
        name_or_path: A YAML file, or the name of one in the folder ``configs`` of the current folder or one above it;
            by default what ``BENTO_AUDIT_CONFIG`` says.
        overrides: Values by dotted key, such as ``{"finetune.epochs": 2, "profile": "full"}``.
        environment: Environment variables, by default the process's. ``BENTO_AUDIT_FINETUNE__EPOCHS=2`` overrides a
            key; ``__`` stands for the dot and values are read as YAML.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value is not allowed; all problems are listed.
    """
    environment = os.environ if environment is None else environment
    file = _find(name_or_path if name_or_path is not None else environment.get(CONFIG_VARIABLE))
    layers = _read(file)
    root = file.parent.parent if file.parent.name == FOLDER else file.parent
    state = environment.get(STATE_VARIABLE)
    above = [*from_environment(environment), *from_arguments(overrides or {})]
    _refuse_profiles(above)
    profiles = _profiles(layers)
    for profile in profiles:
        # Those not in use are checked as well: a config does not break on the day that somebody tries one.
        _checked(_with(layers, profile, above), file, root, state)
    return _checked(_with(layers, _profile_in_use(layers, profiles, above), above), file, root, state)


def _checked(layers: Layers, file: Path, root: Path, state: str | None) -> AuditConfig:
    try:
        return AuditConfig.from_layers(layers, root=root, file=file, state=Path(state).expanduser() if state else None)
    except ValidationError as error:
        raise validation_messages.explain(error, layers, AuditConfig) from error


# Finding and reading the file


def _find(name_or_path: str | os.PathLike[str] | None) -> Path:
    if name_or_path is None or not str(name_or_path):
        raise ConfigError(
            f"no config is named. Name one, or set {CONFIG_VARIABLE}; there are {listing(_names())}.", field="config"
        )
    path = Path(name_or_path).expanduser()
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        located = path.absolute()
        if not located.is_file():
            raise ConfigError(f"there is no config {located}.{similar_path(located)}", field=str(path))
        return located
    for folder in _config_folders():
        located = folder / f"{path.name}.yaml"
        if located.is_file():
            return located
    known = _names()
    raise ConfigError(
        f"there is no config {path.name!r}: no {FOLDER}/{path.name}.yaml in {Path.cwd()} or a folder above it. "
        f"There are {listing(known)}.{did_you_mean(path.name, known)}",
        field=path.name,
    )


def _config_folders() -> list[Path]:
    here = Path.cwd()
    return [folder / FOLDER for folder in (here, *here.parents) if (folder / FOLDER).is_dir()]


def _names() -> list[str]:
    return list(dict.fromkeys(path.stem for folder in _config_folders() for path in sorted(folder.glob("*.yaml"))))


def _read(file: Path) -> Layers:
    shown = _shown(file)
    try:
        document = yaml_text.read_yaml(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown} is not UTF-8: {error.reason} at byte {error.start}", field=shown) from error
    except YamlError as error:
        where = shown if error.line is None else f"{shown}, line {error.line}"
        raise ConfigError(f"{where}: {error.message}", field=shown) from error
    if not isinstance(document.value, dict):
        raise ConfigError(f"{shown} must hold keys and values, such as `name: {file.stem}`", field=shown)
    # An empty section (all of it commented out) means its defaults.
    values = {str(key): value for key, value in document.value.items() if value is not None}
    origins = {
        path: Origin(f"{shown}, line {line}" if path else shown, ".".join(map(str, path)))
        for path, line in document.lines.items()
    }
    return Layers({"name": file.stem, **values}, origins)


def _shown(file: Path) -> str:
    """A file as one would type it."""
    here = Path.cwd()
    return str(file.relative_to(here)) if file.is_relative_to(here) else str(file)


# Profiles and overrides

Given = tuple[yaml_text.Path, Any, Origin]


def _profiles(layers: Layers) -> list[str]:
    """Names of the profiles, after a look at their shape."""
    profiles = layers.values.get("profiles", {})
    if not isinstance(profiles, dict):
        return []  # what is wrong with it is said when the whole is checked
    for name, values in profiles.items():
        origin = layers.origin(("profiles", str(name)))
        if not isinstance(values, dict):
            raise ConfigError(f"{origin.where}: {origin.key}: a profile holds keys of the config", field=origin.key)
        for key in ("profile", "profiles"):
            if key in values:
                raise ConfigError(f"{origin.where}: {origin.key}.{key}: not allowed in a profile", field=origin.key)
    return list(profiles)


def _refuse_profiles(above: Sequence[Given]) -> None:
    for path, _, origin in above:
        if path[0] == "profiles":
            raise ConfigError(
                f"{origin.where}: a profile cannot be overridden; override the key itself, and choose with `profile`",
                field=origin.key,
            )


def _profile_in_use(layers: Layers, profiles: list[str], above: Sequence[Given]) -> str | None:
    chosen, origin = layers.values.get("profile"), layers.origin(("profile",))
    for path, value, where in above:
        if path == ("profile",):
            chosen, origin = value, where
    if chosen is not None and chosen not in profiles:
        raise ConfigError(
            f"{origin.where}: profile: found {chosen!r}; the profiles are {listing(profiles)}."
            f"{did_you_mean(str(chosen), profiles)}",
            field="profile",
        )
    return chosen


def _with(layers: Layers, profile: str | None, above: Sequence[Given]) -> Layers:
    result = layers.copy()
    if profile is not None:
        at = ("profiles", profile)
        origins = {path[2:]: origin for path, origin in layers.origins.items() if path[:2] == at and len(path) > 2}
        result.lay(layers.values["profiles"][profile], origins)
    for path, value, origin in above:
        result.lay(nested(path, value), {path: origin})
    return result
