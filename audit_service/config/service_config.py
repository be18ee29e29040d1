"""The reference from a service class to its config, by name or by ``BENTO_AUDIT_CONFIG``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from audit_service.config import AuditConfig, load_config
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
                raise SettingsError(
                    f"this service names no config, and {ENVIRONMENT} lists {len(listed)}; "
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


def listed_configs() -> list[str]:
    """What ``BENTO_AUDIT_CONFIG`` lists, separated by commas."""
    return [one.strip() for one in os.environ.get(ENVIRONMENT, "").split(",") if one.strip()]
