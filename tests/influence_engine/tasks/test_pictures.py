"""Promises: what people send as a picture becomes upright pixels, or is refused with the reason; paths stay ours."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from influence_engine.errors import InputError
from influence_engine.tasks import pictures

RED, BLUE = (200, 10, 20), (10, 20, 200)


def file_of(picture: Image.Image, form: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=form, **settings)
    return file.getvalue()


def halves(mode: str = "RGB") -> Image.Image:
    """Eight by four pixels: red on the left, blue on the right."""
    picture = Image.new("RGB", (8, 4), BLUE)
    picture.paste(RED, (0, 0, 4, 4))
    return picture.convert(mode)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    content = chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + content


@pytest.fixture
def png() -> bytes:
    return file_of(halves(), "PNG")


def test_a_picture_is_the_same_by_path_bytes_and_base64(png: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a cell.png"
    path.write_bytes(png)
    expected = np.asarray(halves())
    received = [pictures.from_outside(one) for one in (base64.b64encode(png).decode(), png, path)]
    for value in (png, path, str(path), *received, halves()):
        np.testing.assert_array_equal(pictures.decode(value), expected)
    assert [pictures.name_of(one) for one in received] == ["picture", "picture", "a_cell.png"]
    assert pictures.from_outside(received[2]) == received[2]


def test_an_upload_that_holds_base64_is_read_as_such(png: bytes, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(base64.b64encode(png))
    np.testing.assert_array_equal(pictures.decode(pictures.from_outside(path)), np.asarray(halves()))


@pytest.mark.parametrize("sent", ["/etc/passwd", "cell.png", "../data/cell0001.png", "C:\\cell.png", "file:///x.png"])
def test_a_path_that_somebody_sent_is_never_opened(
    sent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, png: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cell.png").write_bytes(png)
    with pytest.raises(InputError, match=r"base64|neither PNG nor JPEG"):
        pictures.from_outside(sent)


def test_a_photograph_that_lies_on_its_side_is_put_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    found = pictures.decode(file_of(halves(), "JPEG", exif=exif, quality=95, subsampling=0))
    assert found.shape == (8, 4, 3)
    assert found[0].mean(0)[0] > 150  # red is on top
    assert found[-1].mean(0)[2] > 150


def test_cmyk_is_converted_to_red_green_and_blue() -> None:
    found = pictures.decode(file_of(halves("CMYK"), "JPEG", quality=95))
    assert found.shape == (4, 8, 3)
    assert found[0, 0, 0] > 150 > 100 > found[0, 0, 2]


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    wide = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    found = pictures.decode(file_of(Image.fromarray(wide), "PNG"))
    np.testing.assert_array_equal(found[..., 0], [[0, 100], [200, 255]])
    np.testing.assert_array_equal(found[..., 0], found[..., 2])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_kinds_of_png_have_three_channels_too(mode: str) -> None:
    found = pictures.decode(file_of(halves(mode), "PNG"))
    assert (found.shape, found.dtype) == ((4, 8, 3), np.uint8)


def test_one_pixel_is_a_picture() -> None:
    assert pictures.decode(file_of(Image.new("RGB", (1, 1), RED), "PNG")).tolist() == [[list(RED)]]


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_truncated_file_is_refused(form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    whole = file_of(noise, form)
    with pytest.raises(InputError, match="is damaged"):
        pictures.decode(whole[: len(whole) // 2])


def test_an_animation_is_refused() -> None:
    animated = file_of(halves(), "PNG", save_all=True, append_images=[Image.new("RGB", (8, 4), RED)])
    with pytest.raises(InputError, match="is animated"):
        pictures.decode(animated)


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (60_000, 1_000), (2**30, 2**30)])
def test_a_decompression_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    bomb = png_header(width, height)
    assert len(bomb) < 100
    with pytest.raises(InputError, match="pixels"):
        pictures.decode(bomb)


def test_a_file_of_too_many_bytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(pictures.MAX_BYTES + 1)
    with pytest.raises(InputError, match="bytes; at most"):
        pictures.decode(path)
    with pytest.raises(InputError, match=r"more than .* bytes"):
        pictures.from_outside("A" * (2 * pictures.MAX_BYTES))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"", "is empty"),
        (b"GIF89a" + b"\0" * 40, "neither PNG nor JPEG"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "is damaged|neither"),
        (b"%PDF-1.7", "neither PNG nor JPEG"),
        ("data:image/gif;base64,R0lG", "data URL of another kind"),
        ("data:text/html,<script>", "data URL of another kind"),
        ("no/such/file.png", "cannot be read"),
        ("\0", "is no path|cannot be read"),
        (17, "is of type int"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(value: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        pictures.decode(value)


def test_a_png_of_shades_of_grey_loses_nothing_and_stays_small() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 20, 1), dtype=np.uint8).repeat(3, axis=2)
    grey = pictures.encode_png(pixels)
    np.testing.assert_array_equal(pictures.decode(grey), pixels)
    pixels[0, 0] = RED
    np.testing.assert_array_equal(pictures.decode(pictures.encode_png(pixels)), pixels)
    assert len(grey) < 30 * 20 * 1.5


def test_a_file_s_name_cannot_break_out_of_a_data_url(png: bytes) -> None:
    url = pictures.data_url(png, 'a;base64,"><script>.png')
    assert pictures.name_of(url) == "a_base64____script_.png"
    np.testing.assert_array_equal(pictures.decode(url), np.asarray(halves()))
    assert pictures.media_type(url) == "image/png"
