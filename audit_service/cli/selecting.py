"""Parses words such as ``top:10`` or ``group:label=negative`` as selections of training examples."""

from __future__ import annotations

from audit_service.schemas import MAX_TOP_K, Polarity, Selection
from influence_engine.errors import SettingsError

STRONGEST: dict[str, Polarity] = {"top": "both", "proponents": "proponents", "opponents": "opponents"}


def selection(word: str) -> Selection:
    """``top:10``, ``proponents:10``, ``opponents:10``, ``group:label=negative`` or ``ids:A,B``.

    Raises:
        SettingsError: it is none of these; the message says what would be.
    """
    kind, _, rest = word.partition(":")
    if kind in STRONGEST and rest.isdecimal() and 1 <= int(rest) <= MAX_TOP_K:
        return Selection(top_k=int(rest), polarity=STRONGEST[kind])
    column, equals, value = rest.partition("=")
    if kind == "group" and column and equals:
        return Selection(group={column: value})
    names = [name.strip() for name in rest.split(",") if name.strip()]
    if kind == "ids" and names:
        return Selection(examples=names)
    raise SettingsError(
        f"{word!r} selects no training examples; write top:10, proponents:10, opponents:10 (1 to {MAX_TOP_K}), "
        "group:COLUMN=VALUE or ids:A,B",
        field="examples",
    )
