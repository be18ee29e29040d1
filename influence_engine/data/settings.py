"""Settings of a data set: where its examples come from, and what the columns of the source mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

SOURCES = ("hub", "csv", "jsonl", "parquet", "dataset", "packaged")
"""The keys of which ``DataSettings`` needs exactly one."""

ROLES = ("id", "source", "licence", "consent")
"""Keys of ``columns`` with a meaning of their own; every other key there is a field of the task."""

COMPANIONS = {
    "subset": ("hub",),
    "revision": ("hub",),
    "split": ("hub", "dataset"),
    "delimiter": ("csv",),
    "min_rating": ("packaged",),
}
"""Keys that go with some sources only."""

Part = Literal["train", "validation", "test"]
PackagedName = Literal["vader/movies", "vader/tweets", "vader/amazon", "vader/news", "atis", "elpv/solar_cells"]


def label_key(value: Any) -> str:
    """One spelling for a raw label, whatever wrote it: ``1``, ``1.0``, ``"1"`` -> ``"1"``; ``True`` -> ``"true"``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _with_label_keys(value: Any) -> Any:
    return {label_key(key): name for key, name in value.items()} if isinstance(value, dict) else value


class DataSettings(BaseModel):
    """One source of examples, what its columns mean, and which of its rows to take.

    Exactly one of ``hub``, ``csv``, ``jsonl``, ``parquet``, ``dataset`` and ``packaged`` says where they come from.
    Paths are relative to the project's folder.

    Attributes:
        hub: A data set of the Hugging Face hub, ``owner/name``.
        subset: The hub data set's configuration, where it has several.
        split: A split of a hub data set or of one on disk; ``train`` where there are splits and none is named.
        revision: The hub data set's commit, tag or branch. Name a commit for a run that can be repeated.
        csv: A CSV file in UTF-8 whose first line names the columns.
        delimiter: What separates the cells of the CSV file.
        jsonl: A file with one JSON object a line.
        parquet: A Parquet file.
        dataset: A folder written by ``save_to_disk`` of the package ``datasets``.
        packaged: Real data inside a Python package: ``vader/...``, sentences with the mean of twenty people's sentiment
            ratings; ``atis``, enquiries about flights with the words that name places, dates, times and the like;
            ``elpv/solar_cells``, photographs of solar cells with an expert's judgement.
        min_rating: Sentences of ``vader/...`` whose mean rating, in [-4, 4], is nearer to 0 are left out as neutral.
        columns: Field of an example -> column of the source. Keys are the task's fields, ``id``, ``source``,
            ``licence`` and ``consent``. What is not named here is looked up under its own name; other columns become
            metadata.
        labels: Label in the source -> the task's label, such as ``{0: negative, 1: positive}``.
        source: Where examples come from that do not say so themselves; by default the name of the data.
        licence: The licence of the examples that have none of their own.
        consent: The consent under which examples without a note of their own were given.
        on_bad_rows: Whether rows that cannot be used stop the run or are left out. Either way they are listed.
        part: Only this part of the source: 80% train, 10% validation, 10% test, by a hash of the example's id.
        part_by: A column whose equal values are never in two parts, such as the patient, the machine or the author:
            what they have in common would otherwise be learned in one part and tested in another.
        limit: At most this many examples, sampled by a hash of the id and ``seed``.
        seed: Chooses the sample of ``limit``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hub: str | None = None
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    csv: Path | None = None
    delimiter: str = Field(",", min_length=1, max_length=1)
    jsonl: Path | None = None
    parquet: Path | None = None
    dataset: Path | None = None
    packaged: PackagedName | None = None
    min_rating: float = Field(0.5, ge=0.0, lt=4.0, allow_inf_nan=False)

    columns: dict[str, str] = Field(default_factory=dict)
    labels: Annotated[dict[str, str], BeforeValidator(_with_label_keys)] | None = None
    source: str | None = None
    licence: str | None = None
    consent: str | None = None

    on_bad_rows: Literal["stop", "drop"] = "stop"
    part: Part | None = None
    part_by: str | None = None
    limit: int | None = Field(None, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _one_source(self) -> DataSettings:
        named = [name for name in SOURCES if getattr(self, name) is not None]
        if len(named) != 1:
            found = " and ".join(named) if named else "none"
            raise ValueError(f"needs exactly one source of {', '.join(SOURCES)}; found {found}")
        for key, sources in COMPANIONS.items():
            if key in self.model_fields_set and named[0] not in sources:
                raise ValueError(f"{key} only goes with {' or '.join(sources)}, and the source is {named[0]}")
        if "min_rating" in self.model_fields_set and not (self.packaged or "").startswith("vader/"):
            raise ValueError(f"min_rating only goes with vader/..., and packaged is {self.packaged}")
        return self

    @property
    def kind(self) -> str:
        """The one of ``SOURCES`` that is named."""
        return next(name for name in SOURCES if getattr(self, name) is not None)
