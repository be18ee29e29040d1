"""Put on PYTHONPATH: every connection and look-up that would leave this machine fails, as with the network off."""

from __future__ import annotations

import sys
from typing import Any

LOCAL = ("127.", "::1", "localhost", "0.0.0.0")


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # a Unix socket has a path or bytes
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host and not str(host).startswith(LOCAL):
        sys.stderr.write(f"OFFLINE: {event} {host!r} refused\n")
        raise OSError(f"the network is off: {event} {host!r}")


sys.addaudithook(refuse)
