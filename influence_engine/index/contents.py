"""How an index stores what its examples say, beside ids, labels and vectors: as it is, encrypted, or not at all.

*Texts* are an example's fields, metadata, source, licence and consent.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Literal, Protocol

from influence_engine.errors import IndexFormatError, SettingsError

StoreExamples = Literal["inline", "encrypted", "none"]

_NONCE = 12
"""Bytes of a nonce."""


class Contents(Protocol):
    """Converts between an example's text in a column and the string that the table stores for the text."""

    def seal(self, example_id: str, column: str, text: str) -> str:
        """The string that the table stores."""

    def open(self, example_id: str, column: str, stored: str) -> str | None:
        """The text again; ``None`` where no text is stored, or for a reader without the key."""


class Inline:
    """Stores texts as they are."""

    def seal(self, example_id: str, column: str, text: str) -> str:
        """The text."""
        return text

    def open(self, example_id: str, column: str, stored: str) -> str:
        """The text."""
        return stored


class Absent:
    """Stores no texts."""

    def seal(self, example_id: str, column: str, text: str) -> str:
        """An empty string."""
        return ""

    def open(self, example_id: str, column: str, stored: str) -> None:
        """None, always."""
        return


class Encrypted:
    """Stores texts under AES-GCM with a key that is not in the index; a reader without the key sees no texts.

    The nonce is a keyed digest of example, column and text, so that the same examples make the same table.

    Args:
        key: 32 bytes; None to read the rest of the index without the texts.

    Raises:
        SettingsError: the key has another length.
    """

    def __init__(self, key: bytes | None) -> None:
        if key is not None and len(key) != 32:
            raise SettingsError(f"the index key has {len(key)} bytes; it must have 32", field="key")
        self._key = key

    def seal(self, example_id: str, column: str, text: str) -> str:
        """Nonce and ciphertext in base64; they can be opened only as this column of this example.

        Raises:
            SettingsError: there is no key.
        """
        if self._key is None:
            raise SettingsError("index.store_examples is 'encrypted', which needs a key of 32 bytes", field="key")
        about = _about(example_id, column)
        plain = text.encode("utf-8", "surrogatepass")
        nonce = hmac.new(self._key, b"nonce\0" + about + b"\0" + plain, hashlib.sha256).digest()[:_NONCE]
        return base64.b64encode(nonce + _cipher(self._key).encrypt(nonce, plain, about)).decode()

    def open(self, example_id: str, column: str, stored: str) -> str | None:
        """The text, or ``None`` without a key.

        Raises:
            IndexFormatError: it was sealed with another key, or has been changed.
        """
        if self._key is None:
            return None
        from cryptography.exceptions import InvalidTag

        raw = base64.b64decode(stored)
        try:
            plain: bytes = _cipher(self._key).decrypt(raw[:_NONCE], raw[_NONCE:], _about(example_id, column))
        except InvalidTag:
            raise IndexFormatError(
                f"the {column} of example {example_id!r} cannot be decrypted: the key is not the one that the index "
                "was built with, or the row has been changed",
                field="key",
            ) from None
        return plain.decode("utf-8", "surrogatepass")


def contents_for(store_examples: StoreExamples, key: bytes | None) -> Contents:
    """The contents of an index with this ``store_examples`` setting."""
    if store_examples == "encrypted":
        return Encrypted(key)
    return Inline() if store_examples == "inline" else Absent()


def _about(example_id: str, column: str) -> bytes:
    return f"{column}/{example_id}".encode("utf-8", "surrogatepass")


# The return type is cryptography's, which only an encrypted index needs.
def _cipher(key: bytes):  # type: ignore[no-untyped-def]
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise SettingsError(
            f"an encrypted index needs the package cryptography ({error})", field="store_examples"
        ) from error
    return AESGCM(key)
