"""Encryption of what may be personal: AES-GCM under a key that only the service's user can read."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from audit_service.errors import ServiceError
from audit_service.store.location import private_folder


class InputCipher:
    """Encrypts inputs; the key is read, or made, when it is first needed.

    Args:
        path: The key's file, mode 0600. Whoever loses it loses the inputs; whoever deletes it erases them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key: bytes | None = None

    def encrypt(self, prediction_id: str, example: Mapping[str, Any]) -> bytes:
        """Encrypts one example; it can only be decrypted as the input of this prediction."""
        nonce = os.urandom(12)
        text = json.dumps(plain(example), ensure_ascii=False, allow_nan=False)
        data = text.encode("utf-8", "surrogatepass")
        return nonce + AESGCM(self._load()).encrypt(nonce, data, prediction_id.encode())

    def decrypt(self, prediction_id: str, encrypted: bytes) -> dict[str, Any]:
        """What ``encrypt`` was given.

        Raises:
            ServiceError: the key or the encrypted bytes are not those of this prediction.
        """
        try:
            text = AESGCM(self._load()).decrypt(encrypted[:12], encrypted[12:], prediction_id.encode())
        except InvalidTag:
            raise ServiceError(
                f"the input of prediction {prediction_id} cannot be decrypted: {self.path.name} is not the key it was "
                "written with, or the store has been changed"
            ) from None
        example: dict[str, Any] = json.loads(text.decode("utf-8", "surrogatepass"))
        return example

    def mac(self, text: str) -> bytes:
        """A keyed digest of ``text``: equal texts have equal ones, and nobody without the key can try texts out."""
        return hmac.new(self._load(), b"mac\0" + text.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()

    def _load(self) -> bytes:
        if self._key is None:
            self._key = key_of(self.path)
        return self._key


def key_of(path: Path) -> bytes:
    """The key in a file that only its owner can read; it is made where there is none."""
    private_folder(path.parent)
    if not path.exists():
        _make_key(path)
    return path.read_bytes()


def _make_key(path: Path) -> None:
    # Written aside and linked: of several workers that start together one wins, and nobody sees a part.
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(AESGCM.generate_key(256))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink()


def plain(value: Any) -> Any:
    """``value`` as JSON types: pydantic models, arrays and numbers of numpy become what they hold.

    Raises:
        TypeError: something in it is no such value.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    for method in ("model_dump", "tolist"):
        if hasattr(value, method):
            return plain(getattr(value, method)())
    raise TypeError(f"an input of type {type(value).__name__} cannot be kept")
