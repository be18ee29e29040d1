"""Pictures: from a file, bytes or a data URL to pixels, within limits, and from pixels to a data URL.

PNG and JPEG only. What a program of ours names is trusted to be a path; what comes from outside never is
(``from_outside``). Pixels are upright (EXIF), 8 bits a channel, red, green and blue: CMYK is converted, 16-bit
greyscale scaled, transparency dropped, as everything that trains on pictures does.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_engine.errors import InputError

Pixels = npt.NDArray[np.uint8]
"""``[height, width, 3]``: red, green, blue."""

MAX_BYTES = 20 * 2**20
"""Of a picture's file."""

MAX_PIXELS = 32 * 2**20
"""Width times height, as the file's header says before anything is decoded; decoded, they take 3 bytes each."""

FORMATS = ("PNG", "JPEG")

_DATA_URL = re.compile(r"data:image/(?:png|jpeg)(?:;name=(?P<name>[A-Za-z0-9._%-]*))?;base64,", re.ASCII)
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def decode(value: Any) -> Pixels:
    """The pixels of a picture.

    Args:
        value: The bytes of a file, a ``Path``, a data URL, a path as a string, or a picture of Pillow.

    Raises:
        InputError: it is no such file, damaged, animated, or beyond the limits; the message says which.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    raw = file_bytes(value)
    try:
        with warnings.catch_warnings():
            # Pillow warns of files that it takes for bombs; the limit here is lower, and refuses.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(raw), formats=FORMATS) as picture:
                _check_header(picture)
                picture.load()
                return _channels(ImageOps.exif_transpose(picture))
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"has more than {MAX_PIXELS:,} pixels; send a smaller picture") from None
    except UnidentifiedImageError:
        raise InputError("is neither PNG nor JPEG; convert it to one of them") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
        raise InputError(f"is damaged: {_reason(error)}") from None


def file_bytes(value: Any) -> bytes:
    """The bytes of a picture's file, whatever it is given as; see ``decode``.

    Raises:
        InputError: there is no such file, it is empty or too large, or the value is something else.
    """
    if isinstance(value, str):
        found = _DATA_URL.match(value)
        if found is not None:
            return _bounded(_from_base64(value[found.end() :]))
        if value.startswith("data:"):
            raise InputError("is a data URL of another kind; it must begin like data:image/png;base64,")
        value = Path(value)
    if isinstance(value, os.PathLike):
        return _read(Path(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _bounded(bytes(value))
    if hasattr(value, "save") and hasattr(value, "mode"):  # Pillow's own, as a service's method may be given
        return _bounded(_as_png(value))
    raise InputError(f"is of type {type(value).__name__}; give the file's bytes, a path, or base64")


def from_outside(value: Any) -> str:
    """What somebody sent, as a data URL: a string is base64 or a data URL and never a path.

    A ``Path`` is one that the server made, of an upload; base64 may be what was uploaded.

    Raises:
        InputError: it is neither, or beyond the limits.
    """
    if isinstance(value, str):
        found = _DATA_URL.match(value)
        name = "" if found is None else found["name"] or ""
        return data_url(file_bytes(value) if found is not None else _bounded(_from_base64(value)), name)
    raw = file_bytes(value)
    if not _kind(raw) and raw[:64].isascii():
        return from_outside(raw.decode("ascii", errors="replace").strip())
    return data_url(raw, Path(value).name if isinstance(value, os.PathLike) else "")


def data_url(raw: bytes, name: str = "") -> str:
    """The data URL of a PNG or JPEG file, with its name where it has one.

    Raises:
        InputError: it is neither.
    """
    kind = _kind(raw)
    if not kind:
        raise InputError("is neither PNG nor JPEG; convert it to one of them")
    said = f";name={_UNSAFE.sub('_', name)[-80:]}" if name else ""
    return f"data:image/{kind}{said};base64,{base64.b64encode(raw).decode('ascii')}"


def media_type(url: str) -> str:
    """The media type that a data URL of ``data_url`` names."""
    return url[len("data:") : url.index(";")]


def name_of(value: Any) -> str:
    """What a picture is called in a line: its file's name where that is known."""
    if isinstance(value, str):
        found = _DATA_URL.match(value)
        return value if found is None else found["name"] or "picture"
    return str(value) if isinstance(value, os.PathLike) else "picture"


def encode_png(pixels: Pixels) -> bytes:
    """A PNG file of the pixels, in shades of grey where they have no colour; nothing is lost."""
    from PIL import Image

    grey = bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels))
    return _as_png(picture)


def _as_png(picture: Any) -> bytes:
    file = io.BytesIO()
    try:
        picture.save(file, format="PNG", optimize=True)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"is damaged: {_reason(error)}") from None
    return file.getvalue()


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"has {size:,} bytes; at most {MAX_BYTES:,} are read")
        return _bounded(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}: {path}") from None
    except ValueError:  # a null byte
        raise InputError("is no path") from None


def _bounded(raw: bytes) -> bytes:
    if not raw:
        raise InputError("is empty; send a PNG or JPEG file")
    if len(raw) > MAX_BYTES:
        raise InputError(f"has {len(raw):,} bytes; at most {MAX_BYTES:,} are read")
    return raw


def _from_base64(text: str) -> bytes:
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        raise InputError(f"has more than {MAX_BYTES:,} bytes")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError("is not base64; send the file's bytes in base64, or upload the file") from None


def _kind(raw: bytes) -> str:
    return next((kind for start, kind in _SIGNATURES.items() if raw.startswith(start)), "")


def _check_header(picture: Any) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise InputError(
            f"has {picture.width:,} x {picture.height:,} pixels; at most {MAX_PIXELS:,} are read. Send a smaller one"
        )
    # A phone's JPEG may hold further views of one photograph (MPO); a PNG with several pictures is an animation.
    if picture.format == "PNG" and getattr(picture, "is_animated", False):
        raise InputError(f"is animated ({picture.n_frames} pictures); send one of them")


def _channels(picture: Any) -> Pixels:
    if picture.mode.startswith("I"):  # 16 bits of grey
        wide = np.asarray(picture).astype(np.float32)
        grey = np.clip(np.rint(wide / 257.0), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
