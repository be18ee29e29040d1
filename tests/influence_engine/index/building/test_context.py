"""Promise: both ways to build an index take the same options, and refuse others by naming the known ones."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import pytest

from influence_engine import InfluenceIndex
from influence_engine.index.building.context import DEFAULT_OPTIONS, BuildOptions

MISSPELT: dict[str, Any] = {"devise": "cpu"}


def test_an_unknown_option_is_a_type_error_that_names_the_known_ones(vector_task: Any, index_folder: Any) -> None:
    with pytest.raises(TypeError, match=r"build\(\) got .* 'devise'; it knows .*base, held_out, key, device, progress"):
        InfluenceIndex.build(None, vector_task, [], index_folder, **MISSPELT)
    with pytest.raises(TypeError, match=r"build_from_run\(\) got .* 'devise'; it knows .*into, held_out, key"):
        InfluenceIndex.build_from_run("no such run", vector_task, [], index_folder, **MISSPELT)
    assert not index_folder.exists()


def test_every_option_has_a_default_and_is_documented_where_an_index_is_built() -> None:
    options = get_type_hints(BuildOptions)
    assert set(DEFAULT_OPTIONS) == set(options)
    assert all(f"``{name}``" in (inspect.getdoc(InfluenceIndex.build) or "") for name in options)
