"""Forms, as BentoML reads them: a field is JSON where it can be, else a text. What it would fail at says so."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from audit_service.errors import BadRequestError
from audit_service.serving.asgi import Receive, replay
from audit_service.serving.json_body import check_json_or_text


async def check_form(content_type: bytes, body: bytes, receive: Receive, files: Collection[str] = ()) -> None:
    """Reads a form with the parser that BentoML reads it with, and refuses what either would fail at.

    Args:
        content_type: The header.
        body: The whole body.
        receive: What comes after it.
        files: Names of the fields that are files, which are not looked into.

    Raises:
        BadRequestError: it names no boundary, is broken, or has too many fields or too long ones.
        BrokenJsonError: a field is neither a text nor JSON.
    """
    request = Request({"type": "http", "headers": [(b"content-type", content_type)]}, replay(body, receive))
    try:
        async with request.form() as form:
            for name, value in form.multi_items():
                if name not in files:
                    check_json_or_text(await value.read() if isinstance(value, UploadFile) else value, name)
    except MultiPartException as error:
        raise BadRequestError(f"the form cannot be read: {error.message}") from None
    except (UnicodeError, LookupError):
        raise BadRequestError("the form cannot be read: it is not of the charset that its content type says") from None
