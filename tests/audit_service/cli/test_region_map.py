"""A picture's regions as a person sees them: signs by colour, strength by shade, what has no place in words."""

from __future__ import annotations

from rich.text import Text

from audit_service.cli.region_map import region_map


def part(start: int | None, influence: float) -> dict[str, object]:
    return {"start": start, "influence": influence}


def test_the_strongest_region_is_darkest_and_the_rest_is_said() -> None:
    parts = [part(0, 0.0), part(1, -0.2), part(2, 0.5), part(3, 1.0), part(None, 0.03)]
    shown = Text.from_markup(region_map(parts, "influence", residual=-0.25))
    lines = shown.plain.splitlines()
    assert lines[0].split() == ["··", "░░"]
    assert lines[1].split() == ["▒▒", "██"]
    assert lines[2] == "strongest +1.0000, no place +0.0300, not placed -0.2500"
    colours = [(shown.plain[span.start], span.style) for span in shown.spans]
    assert colours[1] == ("░", "red")
    assert colours[3] == ("█", "green")


def test_regions_without_any_influence_are_all_pale() -> None:
    shown = Text.from_markup(region_map([part(number, 0.0) for number in range(4)], "influence"))
    assert set(shown.plain.splitlines()[0]) <= {"·", " "}
