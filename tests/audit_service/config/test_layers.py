from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from audit_service.config.layers import Layers, Origin, from_arguments, nested, variable

keys = st.sampled_from(["a", "b", "c"])
trees = st.recursive(
    st.dictionaries(keys, st.integers() | st.lists(st.integers(), max_size=2), max_size=3),
    lambda inner: st.dictionaries(keys, inner | st.integers(), max_size=3),
    max_leaves=8,
)


def leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        found |= leaves(value, (*above, key)) if isinstance(value, dict) else {(*above, key): value}
    return found


@given(below=trees, above=trees)
def test_what_lies_above_wins_and_what_it_does_not_name_stays(below: dict[str, Any], above: dict[str, Any]) -> None:
    layers = Layers(below)
    layers.lay(above, {})

    merged, on_top = leaves(layers.values), leaves(above)
    assert merged.items() >= on_top.items()
    for path, value in leaves(below).items():
        touched = any(path[: len(other)] == other[: len(path)] for other in on_top)
        assert touched or path not in merged or merged[path] == value


@given(tree=trees)
def test_laying_never_changes_what_lies_below(tree: dict[str, Any]) -> None:
    before = repr(tree)

    Layers(tree).lay({"a": {"b": 1}}, {})

    assert repr(tree) == before


def test_a_value_that_was_not_given_has_the_origin_of_what_is_around_it() -> None:
    layers = Layers({"a": {"b": 1}}, {(): Origin("file", ""), ("a",): Origin("line 3", "a")})

    assert layers.origin(("a", "c", 0)) == Origin("line 3", "a.c.0")
    assert layers.origin(("d",)) == Origin("file", "d")


def test_a_list_that_is_replaced_leaves_no_lines_behind() -> None:
    layers = Layers({"a": [1, 2]}, {("a",): Origin("line 1", "a"), ("a", 1): Origin("line 2", "a.1")})
    path, value, origin = next(from_arguments({"a": [3, 4]}))

    layers.lay(nested(path, value), {path: origin})

    assert layers.origin(("a", 1)) == Origin("override", "a.1")


def test_a_variable_spells_its_path() -> None:
    assert variable(("finetune", "learning_rate")) == "BENTO_AUDIT_FINETUNE__LEARNING_RATE"
