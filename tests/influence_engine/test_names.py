from __future__ import annotations

import pytest

from influence_engine.names import did_you_mean, listing, nearest


@pytest.mark.parametrize(("name", "meant"), [("txt", "text"), ("Label", "label"), ("lable", "label"), ("zebra", None)])
def test_the_nearest_name_is_what_was_meant_or_nothing(name: str, meant: str | None) -> None:
    assert nearest(name, ["text", "label"]) == meant


def test_a_hint_is_empty_where_nothing_is_near() -> None:
    assert did_you_mean("zebra", ["text"]) == ""
    assert did_you_mean("txet", ["text"]) == " Did you mean 'text'?"


def test_a_long_list_of_names_is_cut_and_says_so() -> None:
    assert listing([]) == "(none)"
    assert listing(["a", "b"]) == "'a', 'b'"
    assert listing([str(number) for number in range(25)]).endswith("'19' and 5 more")
