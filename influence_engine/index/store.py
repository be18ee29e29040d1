"""The example table: examples, provenance and vectors in one Lance dataset."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from influence_engine.digests import described
from influence_engine.errors import IndexFormatError
from influence_engine.index.contents import Contents, Inline
from influence_engine.resources import trim_heap
from influence_engine.tasks import Example

RESERVED = ("example_id", "source", "licence", "consent", "metadata")
"""Keys of an example that are not fields of its task."""

DESCRIBING = ("example_id", "example_handle", "label", "source", "licence", "consent", "fields", "metadata")
"""All columns but the numbers."""

_TEXTS = ("source", "licence", "consent")
_MAPPINGS = ("fields", "metadata")
_SEALED = (*_TEXTS, *_MAPPINGS)
"""Columns that are stored as the index's ``store_examples`` says."""

_READ = 1024
"""Rows that are read at once; several such batches are in memory."""

_READ_AHEAD = 2**22
"""Bytes that Lance reads ahead; by default it may read up to a whole table."""

_PAGE = 2**20
"""Bytes of a column that are buffered before they are written."""

LARGEST = 1024.0
"""Stored vectors are scaled to this largest value: well inside half precision, with small values above its least."""

MAX_CACHED_SHARE = 0.1
"""Columns are cached in memory where they take at most this share of the vectors' bytes."""


class ExampleTable:
    """Reads an example table.

    Args:
        path: The Lance dataset.
        contents: How texts are stored there; as they are if left out.

    Raises:
        IndexFormatError: there is no table, or it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], contents: Contents | None = None) -> None:
        self.path = Path(path)
        self._contents = contents or Inline()
        if not self.path.is_dir():
            raise IndexFormatError(f"{path} is missing", field=str(path))
        try:
            self._dataset = lance.dataset(str(path))
        except Exception as error:
            raise IndexFormatError(f"{path} cannot be opened: {error}", field=str(path)) from error
        self._cached: pa.Table | None = None

    def __len__(self) -> int:
        return int(self._dataset.count_rows())

    def cache(self, columns: Sequence[str]) -> int:
        """Caches columns in memory where they take little compared to the vectors; returns the bytes that it took.

        A row from the disk costs about a tenth of a small model's forward pass, in memory next to nothing.
        """
        sizes = {field.id: field.bytes_on_disk for field in self._dataset.stats.data_stats().fields}
        by_name = {field.name(): sizes.get(field.id(), 0) for field in self._dataset.lance_schema.fields()}
        if sum(by_name[name] for name in columns) > by_name["vector"] * MAX_CACHED_SHARE:
            return 0
        self._cached = self._dataset.to_table(columns=list(columns)).combine_chunks()
        return int(self._cached.nbytes)

    def column(self, name: str) -> list[Any]:
        """One column as a list, in row order, ``metadata`` and ``fields`` as mappings."""
        if name not in _SEALED:
            return self._dataset.to_table(columns=[name]).column(name).to_pylist()
        rows = self._dataset.to_table(columns=["example_id", name]).to_pylist()
        return [self._opened(row)[name] for row in rows]

    def vectors(self) -> Tensor:
        """All vectors ``[N, k]``, in row order, in the type that they are stored in.

        Raises:
            IndexFormatError: the table has no rows.
        """
        result: Tensor | None = None
        done = 0
        for block in self._blocks(["vector"]):
            part = _to_tensor(block.column("vector"))
            if result is None:
                result = torch.empty(len(self), part.shape[1], dtype=part.dtype)
            result[done : done + len(part)] = part
            done += len(part)
        if result is None:
            raise IndexFormatError(f"{self.path} has no rows", field=str(self.path))
        return result

    def take(self, rows: Sequence[int], columns: Sequence[str] = DESCRIBING) -> list[dict[str, Any]]:
        """Some rows in the given order, with ``fields`` and ``metadata`` as mappings; each column adds to the time."""
        needed = list(columns) if isinstance(self._contents, Inline) else list({*columns, "example_id"})
        if self._cached is not None and set(needed) <= set(self._cached.column_names):
            found = self._cached.select(needed).take(list(rows)).to_pylist()
        else:
            found = self._dataset.take(list(rows), columns=needed).to_pylist()
        return [{name: row[name] for name in columns} for row in map(self._opened, found)]

    def _opened(self, row: dict[str, Any]) -> dict[str, Any]:
        opened = {
            name: self._contents.open(row.get("example_id", ""), name, row[name])
            for name in _SEALED
            if row.get(name) is not None
        }
        mappings = {name: json.loads(opened[name] or "{}") for name in _MAPPINGS if name in opened}
        return {**row, **opened, **mappings}

    def content_digest(self) -> str:
        """SHA-256 over all rows in ``example_id`` order, without the handles, which are random."""
        return content_digest(self._blocks())

    def _blocks(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        yield from self._dataset.to_batches(columns=columns, batch_size=_READ, io_buffer_size=_READ_AHEAD)


def content_digest(blocks: Iterable[pa.RecordBatch]) -> str:
    """Digest of record batches of the table's schema, independent of their number and order."""
    digests: dict[str, bytes] = {}
    for block in blocks:
        vectors = _to_tensor(block.column("vector")).view(torch.uint8).numpy()
        plain = block.drop_columns(["vector", "example_handle"]).to_pylist()
        for row, vector in zip(plain, vectors, strict=True):
            text = json.dumps(row, sort_keys=True, ensure_ascii=False)
            digest = hashlib.sha256(text.encode("utf-8", errors="surrogatepass"))
            digest.update(vector.tobytes())
            digests[row["example_id"]] = digest.digest()
        trim_heap()
    return hashlib.sha256(b"".join(digests[example_id] for example_id in sorted(digests))).hexdigest()


def write_table(
    path: str | os.PathLike[str],
    blocks: Iterable[tuple[Sequence[Example], Tensor, Tensor]],
    *,
    group: Callable[[Example], str | None],
    weight: float,
    dimensions: int,
    dtype: str,
    contents: Contents | None = None,
) -> str:
    """Writes a new table from blocks of examples, vectors ``[n, k]`` and self-influences ``[n]``; returns its digest.

    Args:
        path: The Lance dataset to make.
        blocks: In row order.
        group: What an example is grouped under.
        weight: Factor that turns inner products of vectors and queries into influences.
        dimensions: ``k``.
        dtype: ``float16`` or ``float32``.
        contents: How texts are stored; as they are if left out.
    """
    storage = contents or Inline()
    schema = pa.schema(
        [
            pa.field("example_id", pa.string(), nullable=False),
            pa.field("example_handle", pa.string(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("source", pa.string()),
            pa.field("licence", pa.string()),
            pa.field("consent", pa.string()),
            pa.field("fields", pa.string(), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("weight", pa.float32(), nullable=False),
            pa.field("self_influence", pa.float32(), nullable=False),
            pa.field("vector", pa.list_(pa.float16() if dtype == "float16" else pa.float32(), dimensions)),
        ]
    )

    def batches() -> Iterator[pa.RecordBatch]:
        for examples, vectors, own in blocks:
            columns = [
                {**_row(example, group(example), storage), "weight": weight, "self_influence": influence}
                for example, influence in zip(examples, own.tolist(), strict=True)
            ]
            flat = pa.array(vectors.to(getattr(torch, dtype)).contiguous().flatten().numpy())
            arrays = [pa.array([column[field.name] for column in columns], field.type) for field in list(schema)[:-1]]
            yield pa.RecordBatch.from_arrays(
                [*arrays, pa.FixedSizeListArray.from_arrays(flat, dimensions)], schema=schema
            )
            trim_heap()

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    lance.write_dataset(reader, str(path), mode="create", max_page_bytes=_PAGE, data_cache_bytes=_PAGE)
    return ExampleTable(path).content_digest()


def _row(example: Example, group: str | None, contents: Contents) -> dict[str, Any]:
    fields = {key: value for key, value in example.items() if key not in RESERVED}
    metadata = dict(example.get("metadata") or {})
    example_id = str(example["example_id"])
    texts = {name: str(example[name]) for name in _TEXTS if example.get(name) is not None}
    texts |= {"fields": _json(fields, example), "metadata": _json(metadata, example)}
    return {
        "example_id": example_id,
        "example_handle": f"ex_{secrets.token_hex(8)}",
        "label": group,
        **dict.fromkeys(_TEXTS),
        **{name: contents.seal(example_id, name, text) for name, text in texts.items()},
    }


def _json(value: Mapping[str, Any], example: Example) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=described)
    except TypeError as error:
        raise IndexFormatError(
            f"example {example['example_id']!r} has a field that cannot be stored as JSON: {error}; "
            "store a reference to it (a path) instead"
        ) from error


def _to_tensor(column: Any) -> Tensor:
    return from_dlpack(column.flatten()).reshape(len(column), -1)
