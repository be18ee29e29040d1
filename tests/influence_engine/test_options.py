"""Promises: options that are not given have their defaults, unknown ones are refused, former names still work."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

import pytest

from influence_engine.options import with_defaults


class Options(TypedDict, total=False):
    """Two options."""

    device: str
    cache: str | None


DEFAULTS: Options = {"device": "auto", "cache": None}


def work(size: int, **options: Unpack[Options]) -> Options:
    return with_defaults(work, DEFAULTS, options, renamed={"kept": "cache"})


def test_what_is_not_given_has_its_default() -> None:
    assert work(1) == DEFAULTS
    assert work(1, cache="here") == {"device": "auto", "cache": "here"}
    assert DEFAULTS == {"device": "auto", "cache": None}


def test_an_unknown_option_is_a_type_error_that_names_the_known_ones() -> None:
    unknown: dict[str, Any] = {"devise": "cpu"}
    with pytest.raises(TypeError, match=r"work\(\) got .* 'devise'; it knows size, device, cache"):
        work(1, **unknown)


def test_a_former_name_is_taken_with_a_warning() -> None:
    former: dict[str, Any] = {"kept": "here"}
    with pytest.warns(DeprecationWarning, match="'kept' is now called 'cache'"):
        assert work(1, **former)["cache"] == "here"
    with pytest.raises(TypeError, match="got both 'cache' and 'kept'"):
        work(1, cache="there", **former)
