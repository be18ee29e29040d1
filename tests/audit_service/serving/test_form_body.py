"""A form that cannot be read is a mistake of whoever sent it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from audit_service.errors import BadRequestError
from audit_service.serving.form_body import check_form

MULTIPART, URLENCODED = b"multipart/form-data; boundary=x", b"application/x-www-form-urlencoded"


def part(value: bytes, name: bytes = b"text", more: bytes = b"") -> bytes:
    return b'--x\r\ncontent-disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + value + b"\r\n"


def read(content_type: bytes, body: bytes, files: Any = ()) -> None:
    async def nothing_more() -> Any:
        return {"type": "http.disconnect"}

    asyncio.run(check_form(content_type, body, nothing_more, files))


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        (b"multipart/form-data", b"--x--", "boundary"),
        (MULTIPART, b"nothing of the kind", "Invalid multipart data"),
        (MULTIPART, b"--x\r\n\r\nvalue\r\n--x--\r\n", "name"),
        (MULTIPART, b"".join(part(b"1") for _ in range(1_001)) + b"--x--\r\n", "Too many fields"),
        (MULTIPART, part(b"1" * 1_100_000) + b"--x--\r\n", "maximum size"),
        (MULTIPART, part(b"\xff", more=b'; filename="a"') + b"--x--\r\n", "not UTF-8 at byte 0"),
        (MULTIPART, part(b"1e999") + b"--x--\r\n", "too large"),
        (MULTIPART, part(b"NaN") + b"--x--\r\n", "NaN"),
        (MULTIPART, part(b"9" * 5_000) + b"--x--\r\n", "too large"),
        (MULTIPART, part(b"[" * 50_000) + b"--x--\r\n", "too deeply"),
        (MULTIPART, part(b'"\\ud800"') + b"--x--\r\n", "surrogate"),
        (MULTIPART + b"; charset=undefined", part(b"1") + b"--x--\r\n", "charset"),
        (MULTIPART + b"; charset=unicode_escape", part(b"\\ud800") + b"--x--\r\n", "surrogate"),
        (URLENCODED, b"&".join(b"a=1" for _ in range(1_001)), "Too many fields"),
        (URLENCODED, b"text=1e999", "too large"),
    ],
)
def test_what_cannot_be_read_is_refused(content_type: bytes, body: bytes, says: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        read(content_type, body)

    assert says in caught.value.message


def test_texts_json_and_files_pass() -> None:
    read(MULTIPART, part(b"a text") + part(b'{"a": [1.5]}') + part(b"{half") + b"--x--\r\n")
    read(MULTIPART, part(b"\xff\xfe", name=b"file", more=b'; filename="a"') + b"--x--\r\n", ["file"])
    read(URLENCODED, b"text=%ff&text=1&&=")
    read(URLENCODED, b"")
