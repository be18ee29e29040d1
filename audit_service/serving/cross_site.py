"""Refuses what other people's pages send to the audit through a browser that can reach it.

Two ways lead there. A page may post to an address that it cannot read (its ``Origin`` says so). And a name that its
owner points at this machine after the page was loaded (DNS rebinding) makes the service look like the page's own; the
``Host`` is then that name. An address in digits, and a name without a dot, are no names that a stranger can own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from audit_service.errors import ForeignSiteError


@dataclass(frozen=True)
class Sites:
    """Whose pages may use the audit.

    Attributes:
        hosts: Names by which the service is reached, without port; ``*`` for any.
        origins: Pages of other addresses that may ask, such as ``https://desk.example``.
        pattern: The same as a regular expression; ``None`` for no more than ``origins``.
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    pattern: re.Pattern[str] | None = field(default=None)

    @classmethod
    def of(cls, hosts: Iterable[str], origins: Iterable[str], cors: Mapping[str, Any] | None) -> Sites:
        """The sites of a config, and those that the service lets in by name for all its endpoints.

        Args:
            hosts: As the config says.
            origins: As the config says.
            cors: Options of the service's ``CORSMiddleware``; ``None`` where it has none. Its ``*`` names nobody.
        """
        options = cors or {}
        given = options.get("allow_origins") or ()
        named = {one for one in ([given] if isinstance(given, str) else given) if one != "*"}
        pattern = options.get("allow_origin_regex")
        return cls(
            frozenset(host.lower() for host in hosts),
            frozenset(origin.rstrip("/").lower() for origin in {*origins, *named}),
            None if pattern is None else re.compile(pattern),
        )

    def check(self, host: str, origin: str) -> None:
        """Refuses a request from elsewhere.

        Args:
            host: The header ``Host``; empty where there is none, which no browser leaves out.
            origin: The header ``Origin``; empty where there is none.

        Raises:
            ForeignSiteError: a browser sent it for a page that is not named.
        """
        if host and not self._is_ours(host):
            raise ForeignSiteError(
                f"the audit is not served under the name {_quoted(host)}; name it in the config under serve.hosts",
                field="serve.hosts",
            )
        if origin and not self._may_ask(origin.lower(), host.lower()):
            raise ForeignSiteError(
                f"pages of {_quoted(origin)} may not ask here; name that address in the config under serve.origins",
                field="serve.origins",
            )

    def _is_ours(self, host: str) -> bool:
        name = _name_of(host)
        if name is None:
            return False
        return "*" in self.hosts or name in self.hosts or "." not in name or _is_local(name)

    def _may_ask(self, origin: str, host: str) -> bool:
        same = origin in (f"http://{host}", f"https://{host}")
        return same or origin in self.origins or bool(self.pattern and self.pattern.fullmatch(origin))


def _name_of(host: str) -> str | None:
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises where it is no number
        return (parts.hostname or "").removesuffix(".") or None
    except ValueError:
        return None


def _is_local(name: str) -> bool:
    if name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _quoted(text: str) -> str:
    return ascii(text[:80])
