"""Renders explanations for a terminal: one in the form of ``/audit/explain``, or what many have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from audit_service.cli.console import facts
from audit_service.cli.marked_text import target_in_words, with_entities, with_parts
from audit_service.cli.region_map import region_map
from audit_service.cli.wording import Wording, prediction_text, target_text

MODULES_SHOWN = 6
GROUPS_SHOWN = 8
"""Of each column; the others are one line."""

SOURCE_WIDTH = 20
WORDING = Wording()
SIDES = {
    "proponent": ("Training examples that support it (proponents)", "green"),
    "opponent": ("Training examples that speak against it (opponents)", "red"),
}


def explanation(answer: Mapping[str, Any], text: str, wording: Wording = WORDING) -> RenderableType:
    """One explanation, whole.

    Args:
        answer: The answer of ``/audit/explain``, with ``examples``, ``differences``, ``quality`` and ``timings_ms``.
        text: What a person sees of the input that was explained.
        wording: The task's words for input, example and unit.
    """
    return Group(*_blocks(answer, text, wording))


def sharing(summary: Mapping[str, Any], wording: Wording = WORDING) -> RenderableType:
    """The training examples and groups that the explanations of a file have in common.

    Args:
        summary: ``explained``, ``skipped``, ``shared_examples`` and ``shared_groups``, as of ``explain_file``.
        wording: The task's words for input, example and unit.
    """
    explained = summary["explained"]
    left_out = f", {summary['skipped']:,} not asked for" if summary["skipped"] else ""
    about = facts({"explained": f"{explained:,} rows{left_out}"})
    if not explained:
        return about
    return Group(
        about,
        Text("\nTraining examples that drive many of these answers", style="bold"),
        _shared_examples(summary["shared_examples"], wording),
        Text("\nWhere the influence comes from", style="bold"),
        _shared_groups(summary["shared_groups"]),
        Text(),
        facts(
            {
                "for, against": "answers for which it is among the examples returned in support, or against",
                "influence": f"{wording.unit}, summed".lstrip(", ")
                + " exactly over all answers, also where it was not returned",
                "share": "of all absolute influence, averaged over the answers",
            }
        ),
    )


def _shared_examples(examples: Sequence[Mapping[str, Any]], wording: Wording) -> Table:
    # A line each, cut to what the terminal leaves: the whole texts are in the file of explanations.
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    for name in ("for", "against", "influence"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("label", no_wrap=True)
    table.add_column("source", no_wrap=True, max_width=SOURCE_WIDTH)
    table.add_column(wording.example, no_wrap=True, ratio=1)
    for example in examples:
        shown = example.get("text")
        table.add_row(
            f"{example['proponents']:,}",
            f"{example['opponents']:,}",
            _signed(example["influence"], "+.4f"),
            escape(str(example["label"] or "")),
            escape(str(example["source"] or "")),
            escape(" ".join(str(shown).split())) if shown is not None else f"[dim]{example['example_handle']}[/]",
        )
    return table


def _shared_groups(groups: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("share", "of all examples", "influence", "for", "against"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("label", no_wrap=True)
    table.add_column("source", overflow="fold")
    for group in groups:
        table.add_row(
            f"{group['share']:.1%}",
            f"{group['share_of_examples']:.1%}",
            _signed(group["influence"], "+.2f"),
            f"{group['proponents']:,}",
            f"{group['opponents']:,}",
            escape(str(group["label"] or "")),
            escape(str(group["source"] or "")),
        )
    return table


def _signed(influence: float, form: str) -> str:
    return f"[{'green' if influence >= 0 else 'red'}]{influence:{form}}[/]"


def _blocks(answer: Mapping[str, Any], text: str, wording: Wording) -> Iterator[RenderableType]:
    yield _header(answer, text, wording)
    examples: Sequence[Mapping[str, Any]] = answer.get("examples") or []
    for polarity, (title, colour) in SIDES.items():
        rows = [example for example in examples if example["polarity"] == polarity]
        if rows:
            yield Text(f"\n{title}", style="bold")
            yield _examples(rows, colour, wording)
    groups = _telling(answer.get("groups") or [])
    if groups:
        yield Text("\nWhere the influence comes from", style="bold")
        yield _groups(list(_folded(groups)))
    changed = answer["differences"].get("parts")
    if changed and wording.maps:
        yield Text("\nWhere in the picture fine-tuning changed this answer (first order)", style="bold")
        yield Text.from_markup(region_map(changed, "change"))
    modules = answer["differences"].get("modules")
    if modules:
        order = f"first order, {wording.unit}" if wording.unit else "first order"
        yield Text(f"\nWhere fine-tuning changed this answer ({order})", style="bold")
        yield _modules(modules, answer["differences"].get("modules_residual"))
    yield Text()
    yield _footer(answer, wording)


def _header(answer: Mapping[str, Any], text: str, wording: Wording) -> RenderableType:
    prediction, differences = answer["prediction"], answer["differences"]
    return facts(
        {
            wording.input: _input(text, prediction, wording),
            "prediction": prediction_text(prediction),
            "base model": _base_prediction(differences),
            "explained": _explained(differences.get("target"), prediction, text, wording),
            wording.measurement: _change(differences),
        }
    )


def _input(text: str, prediction: Mapping[str, Any] | None, wording: Wording) -> str | Text:
    entities = (prediction or {}).get("entities")
    return Text.from_markup(with_entities(text, entities)) if entities and wording.marks else text


def _base_prediction(differences: Mapping[str, Any]) -> str | None:
    found = prediction_text(differences.get("base_prediction"))
    return f"{found}, by a head of random weights" if found and differences.get("base_head") == "random" else found


def _explained(target: Any, prediction: Mapping[str, Any] | None, text: str, wording: Wording) -> str | None:
    """The target that is explained, where it is not the prediction."""
    if wording.marks and isinstance(target, Mapping) and (words := target_in_words(target, text)) is not None:
        return f"{wording.the_measurement} of {words}"
    named = target_text(target)
    if named is None or target == prediction or (prediction is not None and named == prediction.get("label")):
        return None
    return f"{wording.the_measurement} of {named!r}" if isinstance(target, str) else named


def _change(differences: Mapping[str, Any]) -> str:
    now, before = differences["measurement"], differences.get("base_measurement")
    return f"{now:+.2f}" if before is None else f"{before:+.2f} in the base model, {now:+.2f} after fine-tuning"


def _telling(groups: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The groups of columns that have more than one, largest share first within each column."""
    several = {group["by"] for group in groups if group["share"] < 1 - 1e-6}
    columns = list(dict.fromkeys(group["by"] for group in groups if group["by"] in several))
    return sorted(
        (group for group in groups if group["by"] in several),
        key=lambda group: (columns.index(group["by"]), -group["share"]),
    )


def _groups(groups: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("influence", "share", "examples"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("group", overflow="fold")
    for group in groups:
        table.add_row(
            _signed(group["influence"], "+.2f") + _interval(group["error_90"], ".2f"),
            f"{group['share']:.1%}",
            f"{group['examples']:,}",
            escape(f"{group['by']} {group['group'] or '(none)'}"),
        )
    return table


def _folded(groups: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The groups, of each column no more than ``GROUPS_SHOWN`` and a last one with the sums of the others."""
    for column in dict.fromkeys(group["by"] for group in groups):
        own = [group for group in groups if group["by"] == column]
        rest = own[GROUPS_SHOWN:] if len(own) > GROUPS_SHOWN + 1 else []
        yield from own[: len(own) - len(rest)]
        if rest:
            sums = {name: sum(group[name] for group in rest) for name in ("influence", "share", "examples")}
            yield {"by": f"{len(rest)} other groups by", "group": column, "error_90": None, **sums}


def _interval(error_90: float | None, form: str) -> str:
    return "" if error_90 is None else f" [dim]± {error_90:{form}}[/]"


def _examples(rows: Sequence[Mapping[str, Any]], colour: str, wording: Wording) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    probabilities = _probabilities(rows)
    table.add_column("influence", justify="right", style=colour, no_wrap=True)
    if probabilities:
        table.add_column("probability", justify="right", no_wrap=True)
    # Where parts are shown, what is taught stands within the text.
    grouped = any(one.get("label") is not None and not (wording.marks and one.get("parts")) for one in rows)
    if grouped:
        table.add_column("label", no_wrap=True)
    table.add_column(wording.example, overflow="fold")
    for number, example in enumerate(rows):
        table.add_row(
            f"{example['influence']:+.4f}" + _interval(example["error_90"], ".4f"),
            *probabilities[number : number + 1],
            *([escape(str(example.get("label") or ""))] if grouped else []),
            _seen(example, wording),
        )
    return table


def _seen(example: Mapping[str, Any], wording: Wording) -> str:
    shown, parts = example.get("text"), example.get("parts")
    if shown is None:
        return f"[dim]{example['example_handle']}[/]"
    if parts and wording.maps:
        return f"{escape(str(shown))}\n{region_map(parts, 'influence', residual=example['parts_residual'])}"
    return with_parts(shown, parts, example["parts_residual"]) if parts and wording.marks else escape(str(shown))


def _probabilities(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The changes of the target's probability in percentage points; nothing where the task has no probabilities."""
    changes = [example["probability_change"] for example in examples]
    return [] if None in changes else [f"{100 * change:+.3f}" for change in changes]


def _modules(modules: Sequence[Mapping[str, Any]], residual: float | None) -> Table:
    ranked = sorted(modules, key=lambda module: abs(module["change"]), reverse=True)
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for module in ranked[:MODULES_SHOWN]:
        table.add_row(f"{module['change']:+.3f}", escape(module["module"]))
    rest = ranked[MODULES_SHOWN:]
    if rest:
        table.add_row(f"{sum(module['change'] for module in rest):+.3f}", f"[dim]{len(rest)} other modules[/]")
    if residual is not None:
        table.add_row(f"{residual:+.3f}", "[dim]not explained at first order[/]")
    return table


def _footer(answer: Mapping[str, Any], wording: Wording) -> Table:
    quality, timings = answer["quality"], answer["timings_ms"]
    examples = answer.get("examples") or []
    tiers = sorted({example["tier"] for example in examples})
    points = "; probability: the same in percentage points" if _probabilities(examples) else ""
    share = quality.get("share_returned")
    solved = quality.get("refinement")
    agreement = {True: "torch and the served model agree", False: "NO: torch disagrees with the served model"}
    return facts(
        {
            "influence": f"{', '.join(tiers)}: by how much training with it raised {wording.the_measurement}{points}"
            if tiers
            else None,
            "refined": f"{solved['passes']} passes over the training examples, the last changed influences by "
            f"{solved['last_change']:.1%}; the index's estimates agree by {solved['agreement_with_estimated']:.2f}"
            if solved
            else None,
            "shown": f"{share:.1%} of all influence" if share is not None else None,
            "parts": _parts_quality(quality.get("parts")),
            "agreement": f"{quality['agreement']:.2f} with retraining, in the index's check; ± is a 90% interval"
            if quality["agreement"] is not None
            else None,
            "warnings": "; ".join(quality["warnings"]) or None,
            "coming": "; ".join(map(_coming, answer.get("coming") or [])) or None,
            "parity": agreement.get(quality.get("parity")),
            "time": ", ".join(f"{stage} {value:.0f} ms" for stage, value in timings.items()) or None,
        }
    )


def _parts_quality(split: Mapping[str, Any] | None) -> str | None:
    if split is None:
        return None
    if split["exact"]:
        return "in brackets; they are the influence's own terms"
    return f"in brackets; estimates, whose sums agree with the influences by {split['agreement']:.2f}"


COMING = {
    "index": "the index along the training trajectory",
    "replayed": "the replayed tier",
    "intervals": "90% intervals",
    "drift_baseline": "the drift baseline",
}
"""What the parts of ``coming`` are called."""


def _coming(part: Mapping[str, Any]) -> str:
    name = COMING.get(part["part"], part["part"])
    if part["state"] == "waiting" or not part["stage"]:
        return name
    left = part["seconds_left"]
    return f"{name} ({part['stage']}, {part['done']} of {part['total']}" + (f", {left:.0f} s left)" if left else ")")
