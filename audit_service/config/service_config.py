"""The reference from a service class to its config, by name or by ``BENTO_AUDIT_CONFIG``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from audit_service.config import AuditConfig, load_config
from audit_service.config.layers import ENABLED_VARIABLE
from influence_engine.errors import SettingsError

ENVIRONMENT = "BENTO_AUDIT_CONFIG"


@dataclass(frozen=True, slots=True)
class ConfigReference:
    """The config of a service class, looked up when the server starts and not at import.

    Attributes:
        name: What the class calls it; ``None`` leaves it to ``BENTO_AUDIT_CONFIG``.
        near: The file that defines the class: a bento carries its config beside its code, wherever it is served from.
    """

    name: str | None
    near: Path | None = None

    @property
    def key(self) -> str:
        """The name under which services and engine speak of this config.

        Raises:
            SettingsError: no config is named.
        """
        return Path(self.source).name.removesuffix(".yaml")

    @property
    def source(self) -> str:
        """A file, or a name to be looked up in the current folder: in this order one that ``BENTO_AUDIT_CONFIG`` lists
        and that has the same name, one in ``configs`` beside or above the service's file, the name itself.

        Raises:
            SettingsError: the class names none, and ``BENTO_AUDIT_CONFIG`` does not list exactly one.
        """
        listed = listed_configs()
        if self.name is None:
            if len(listed) != 1:
                found = f"lists {len(listed)}" if listed else "is not set"
                raise SettingsError(
                    f"this service names no config, and {ENVIRONMENT} {found}; "
                    f"write class ...(AuditMixin, config='NAME'), or set {ENVIRONMENT}",
                    field=ENVIRONMENT,
                )
            return listed[0]
        same = [one for one in listed if Path(one).stem == Path(self.name).stem]
        beside = [folder / "configs" / f"{self.name}.yaml" for folder in (self.near.parents if self.near else ())]
        return next((str(one) for one in (*same, *(path for path in beside if path.is_file()))), self.name)

    def read(self) -> AuditConfig:
        """Reads it.

        Raises:
            SettingsError: none is named, or it cannot be used.
        """
        return load_config(self.source)

    def is_enabled(self) -> bool:
        """Whether what names it is audited: ``AUDIT_ENABLED``, else its key ``enabled``. Where the environment switches
        audits off, no config need be there.

        Raises:
            SettingsError: none is named, it cannot be used, or the variable is neither true nor false.
        """
        return not is_switched_off() and self.read().enabled


def is_switched_off() -> bool:
    """Whether ``AUDIT_ENABLED`` switches all audits off.

    Raises:
        SettingsError: it is neither true nor false.
    """
    found = os.environ.get(ENABLED_VARIABLE, "").strip()
    try:
        return bool(found) and not _boolean.validate_python(found)
    except ValidationError:
        raise SettingsError(
            f"environment variable {ENABLED_VARIABLE}: found {found[:80]!r}; it should be 1 (true) or 0 (false)",
            field=ENABLED_VARIABLE,
        ) from None


_boolean = TypeAdapter(bool)


def check_together(configs: Mapping[str, AuditConfig]) -> None:
    """Refuses configs that one service cannot have at once.

    Args:
        configs: Each by its name.

    Raises:
        SettingsError: two would keep their predictions in one place, or ask different engines.
    """
    places: dict[tuple[object, ...], str] = {}
    for key, config in configs.items():
        place = (config.state_folder,) if config.state.url is None else (config.state.url, config.name)
        if place in places:
            where = str(place[0]) if config.state.url is None else f"the schema {config.name!r} of one database"
            raise SettingsError(
                f"{places[place]!r} and {key!r} would both keep their predictions in {where}: give each config a name "
                "or a folders.state of its own, and write {name} into BENTO_AUDIT_STATE, as in /var/audit/{name}",
                field="folders.state",
            )
        places[place] = key
    urls = {config.serve.engine_url: key for key, config in configs.items()}
    if len(urls) > 1:
        found = " and ".join(f"{key!r} {url or 'one beside the service'}" for url, key in urls.items())
        raise SettingsError(
            f"the configs of one service share an engine, and serve.engine_url differs: {found}; write the same in all",
            field="serve.engine_url",
        )


def listed_configs() -> list[str]:
    """What ``BENTO_AUDIT_CONFIG`` lists, separated by commas."""
    return [one.strip() for one in os.environ.get(ENVIRONMENT, "").split(",") if one.strip()]
