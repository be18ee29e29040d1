"""What a task is, and what its examples say to a model: for manifests and digests."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from influence_engine.digests import json_digest, tensor_bytes
from influence_engine.tasks.capabilities import processor_of
from influence_engine.tasks.contract import DescribedTask, Example, FieldsTask, ReadingTask, Task


def describe_task(task: Task) -> dict[str, Any]:
    """``task.describe()`` where there is one, else its class by name and code, with what the object holds.

    The module that a class stands in is no part of it: moved, it is the same task; changed, it is another.
    """
    if isinstance(task, DescribedTask):
        return task.describe()
    kinds = [kind for kind in type(task).__mro__ if kind is not object and kind.__module__ != "typing"]
    # What begins with an underscore is a task's own affair, such as a cache, which changes while it is used.
    public = {name: value for name, value in getattr(task, "__dict__", {}).items() if not name.startswith("_")}
    held = {name: _held(value) for name, value in sorted(public.items())}
    return {"type": type(task).__qualname__, "code": json_digest([_code(kind) for kind in kinds]), "holds": held}


def matches_task(task: Task, description: Mapping[str, Any]) -> bool:
    """Whether a manifest's description is that of the task, in today's form or the one that named the class alone."""
    return matches_task_digest(task, json_digest(description))


def matches_task_digest(task: Task, digest: str | None) -> bool:
    """Whether a recorded digest is that of the task, in today's form or the one that named the class alone."""
    return digest is not None and digest in (task_digest(task), digest_by_name(task))


def digest_by_name(task: Task) -> str | None:
    """The digest by which 0.1.0 knew a task without ``describe``, its class's name alone; ``None`` for any other."""
    return None if isinstance(task, DescribedTask) else json_digest(described_by_name(task))


def described_by_name(task: object) -> dict[str, str]:
    """What 0.1.0 wrote of a task without ``describe``."""
    return {"type": f"{type(task).__module__}.{type(task).__qualname__}"}


def task_digest(task: Task) -> str:
    """Digest of ``describe_task``."""
    return json_digest(describe_task(task))


def processor_digest(task: Task) -> str | None:
    """Digest of the tokenizer or image processor that goes with the model; ``None`` where there is none."""
    processor = processor_of(task)
    return None if processor is None else digest_of_processor(processor)


def digest_of_processor(processor: Any) -> str:
    """Digest of a fast tokenizer's definition (vocabulary, rules, special tokens), or of a processor's settings."""
    backend = getattr(processor, "backend_tokenizer", None)
    if backend is not None:
        return json_digest(_without_padding(backend.to_str()))
    if hasattr(processor, "get_vocab"):
        return json_digest({"vocabulary": dict(sorted(processor.get_vocab().items()))})
    return json_digest(processor.to_dict())


def content_digest(task: Task, examples: Iterable[Example]) -> str | None:
    """Digest of what the model reads of examples beyond their fields' own values, whatever their order.

    ``None`` where the fields say all, which a task promises by its ``fields``. Else it is what a ``ReadingTask`` says,
    or the tensors that ``collate`` makes of each example alone.
    """
    if not isinstance(task, ReadingTask) and isinstance(task, FieldsTask) and all(one.plain for one in task.fields):
        return None
    digest = hashlib.sha256()
    for example_id, content in sorted((str(one["example_id"]), _content(task, one)) for one in examples):
        digest.update(f"{example_id}|".encode("utf-8", errors="surrogatepass") + content)
    return digest.hexdigest()


def _content(task: Task, example: Example) -> bytes:
    if isinstance(task, ReadingTask):
        return hashlib.sha256(task.content(example)).digest()
    digest = hashlib.sha256()
    for name, tensor in sorted(task.collate([example]).items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode() + tensor_bytes(tensor))
    return digest.digest()


def _code(kind: type) -> str:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # typed into an interpreter: no source
        found = sorted((name, _bytecode(value)) for name, value in vars(kind).items() if hasattr(value, "__code__"))
        return json_digest(found)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _bytecode(function: Any) -> str:
    code = function.__code__
    return hashlib.sha256(code.co_code + repr(code.co_names).encode()).hexdigest()


def _held(value: Any) -> Any:
    """What a task's attribute is, as far as it can be said the same way in another process."""
    if isinstance(value, torch.Tensor | np.ndarray):
        tensor = torch.as_tensor(value)
        return hashlib.sha256(tensor_bytes(tensor)).hexdigest()
    if hasattr(value, "backend_tokenizer") or hasattr(value, "get_vocab") or hasattr(value, "save_pretrained"):
        return digest_of_processor(value)
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return type(value).__qualname__


def _without_padding(definition: str) -> Any:
    # A fast tokenizer keeps the padding and truncation of its last call in its state: no part of what it is.
    state = json.loads(definition)
    state.pop("padding", None)
    state.pop("truncation", None)
    return state
