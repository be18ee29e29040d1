from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_service.config.yaml_text import YamlError, read_scalar, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("5", 5),
        ("1_000", 1000),
        ("-0.5", -0.5),
        (".5", 0.5),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("Y", "Y"),
        ("2024-01-02", "2024-01-02"),
        ("12:30", "12:30"),
        ("010", "010"),
        ("1.4.39", "1.4.39"),
        ("null", None),
        ("", None),
        ("[a, 2]", ["a", 2]),
        ("'2'", "2"),
        ("30d", "30d"),
    ],
)
def test_words_and_numbers_are_what_they_look_like(text: str, value: Any) -> None:
    found = read_scalar(text)

    assert found == value
    assert type(found) is type(value)


def test_every_key_knows_its_line() -> None:
    lines = read_yaml("a: 1\n\n# comment\nb:\n  c: [x,\n    y]\n  d: {e: 2}\n").lines

    assert lines == {
        (): 1,
        ("a",): 1,
        ("b",): 4,
        ("b", "c"): 5,
        ("b", "c", 0): 5,
        ("b", "c", 1): 6,
        ("b", "d"): 7,
        ("b", "d", "e"): 7,
    }


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: [1\nc: 2\n", 3, "expected"),
        ("a: 1\n\tb: 2\n", 2, "found character '\\t'"),
        ("a: 1\nb: 2\na: 3\n", 3, "the key 'a' occurs twice, first in line 1"),
        ("a: 1\n? [x]\n: 2\n", 2, "a key must be a word"),
        ("a: &x [*x]\n", 1, "an alias refers to what it is part of"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", 2, "but found another document"),
        ("a: \x00", None, "special characters are not allowed"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(text: str, line: int | None, message: str) -> None:
    with pytest.raises(YamlError) as caught:
        read_yaml(text)

    assert message in caught.value.message
    assert caught.value.line == line


texts = st.text(st.characters(max_codepoint=0xD7FF), max_size=8)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


@given(st.dictionaries(texts, values, max_size=4))
def test_json_is_yaml(value: dict[str, Any]) -> None:
    assert read_yaml(json.dumps(value)).value == value
