"""Promises: a pause ends with its block, whatever happens in it, and leaves a collector alone that was off before."""

from __future__ import annotations

import contextlib
import gc

from influence_engine.garbage_collection import collection_paused


def test_nothing_is_collected_within_and_everything_as_before_after_it() -> None:
    assert gc.isenabled()
    with contextlib.suppress(ValueError), collection_paused():
        with collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ValueError

    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
