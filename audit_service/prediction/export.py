"""Export of a fine-tuned model to ONNX, checked against torch on real examples.

What is exported is ``Task.outputs``, so that ONNX Runtime and torch mean the same tensor whatever the architecture.
Where the outputs come from one linear layer over one vector an example (the pooled features of a classifier), that
vector is a second output, ``features``: computed anyway, it tells at no cost where among its like an input lies.
The folder holds ``model.onnx``, in ``tokenizer`` the model's processor where there is one, and a manifest with digests.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from audit_service.prediction.export_files import FORMAT, MANIFEST, MODEL, PROCESSOR
from influence_engine.digests import folder_digests
from influence_engine.errors import ModelError
from influence_engine.files import remove_tree, write_json
from influence_engine.progress import Progress, silent
from influence_engine.tasks import Array, Example, ExportableTask, Task, task_digest

PARITY = 1e-4
"""Largest allowed difference between an output of ONNX Runtime and of torch."""

SINGLE_FILE_BYTES = 1_500_000_000
"""Larger weights go into a file of their own: a protocol buffer ends at 2 GB."""


def export_onnx(
    model: nn.Module,
    task: Task,
    examples: Sequence[Example],
    folder: str | os.PathLike[str],
    *,
    model_digest: str,
    processor: Any = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Exports ``model`` and checks that ONNX Runtime answers what torch answers.

    Args:
        model: The fine-tuned model, in evaluation mode, on the CPU.
        task: A task with ``model_inputs``.
        examples: Real examples, at least three; the check runs on them. Dimensions in which their batches differ
            must become dynamic; of the others those become so that the model leaves free.
        folder: Where to write; an older export there is replaced once the new one is whole.
        model_digest: Digest of the model's weights, for the manifest.
        processor: Saved beside the model, so that serving needs this folder only.
        progress: Reports export and check.

    Returns:
        The manifest.

    Raises:
        ModelError: the model cannot be exported, or its outputs differ from torch's by more than ``PARITY``.
    """
    if not isinstance(task, ExportableTask):
        raise ModelError(f"{type(task).__name__} has no method model_inputs, so its model cannot be exported to ONNX")
    if len(examples) < 3:
        raise ModelError(f"an export is checked on at least 3 examples, got {len(examples)}")
    folder = Path(folder)
    aside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    remove_tree(aside)
    aside.mkdir(parents=True)
    try:
        progress("export", 0, 2, "to ONNX")
        features = _export(model, task, examples, aside / MODEL)
        progress("export", 1, 2, "checking against torch")
        gap = _largest_gap(model, task, examples, aside / MODEL)
        if not gap <= PARITY:
            raise ModelError(
                f"ONNX Runtime and torch differ by {gap:.2g} on {len(examples)} examples, allowed is {PARITY:g}; "
                "serve this model with torch, or change the layer that ONNX computes differently"
            )
        if processor is not None:
            processor.save_pretrained(str(aside / PROCESSOR))
        manifest = {
            "format": FORMAT,
            "model_digest": model_digest,
            "task_digest": task_digest(task),
            "features": features,
            "parity": {"largest_gap": gap, "allowed": PARITY, "examples": len(examples)},
            "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
            "files": folder_digests(aside),
        }
        write_json(aside / MANIFEST, manifest)
        _replace_folder(aside, folder)
    finally:
        remove_tree(aside)
    progress("export", 2, 2, f"largest difference to torch {gap:.1g}")
    return manifest


class _Outputs(nn.Module):
    """``Task.outputs`` as a module, with what goes into the layer ``head``, if there is one."""

    def __init__(self, model: nn.Module, task: Task, head: str | None) -> None:
        super().__init__()
        self.model = model
        self._task = task
        self._head = head

    def forward(self, inputs: dict[str, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        """Outputs of the batch, and features where there are some."""
        if self._head is None:
            return self._task.outputs(self.model, inputs)
        caught: list[Tensor] = []
        hook = self.model.get_submodule(self._head).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            outputs = self._task.outputs(self.model, inputs)
        finally:
            hook.remove()
        # An operation of its own: an output of the graph must not be another name of an inner value.
        return outputs, caught[0] * 1.0


def find_head(model: nn.Module, task: Any, examples: Sequence[Example]) -> str | None:
    """Name of the linear layer that makes the outputs of one vector an example; ``None`` where there is none."""
    seen: list[tuple[str, Tensor, Tensor]] = []

    def watch(name: str) -> Any:
        return lambda module, args, output: seen.append((name, args[0], output))

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            outputs = task.outputs(model, task.model_inputs(task.collate(examples)))
    finally:
        for hook in hooks:
            hook.remove()
    for name, taken, made in reversed(seen):
        if taken.dim() == 2 and len(taken) == len(examples) and made.shape == outputs.shape:
            return name if torch.equal(made, outputs) else None
    return None


def _export(model: nn.Module, task: Any, examples: Sequence[Example], path: Path) -> bool:
    """Exports; returns whether there are features."""
    by_size = sorted(examples, key=lambda example: sum(len(str(value)) for value in example.values()))
    sample: dict[str, Tensor] = task.model_inputs(task.collate(by_size[:2]))
    other: dict[str, Tensor] = task.model_inputs(task.collate(by_size[-3:]))
    dynamic = {
        name: {
            # Where the examples' sizes happen to be equal, the exporter finds out whether the model needs that one.
            d: torch.export.Dim.DYNAMIC if tensor.shape[d] != other[name].shape[d] else torch.export.Dim.AUTO
            for d in range(tensor.dim())
        }
        for name, tensor in sample.items()
    }
    head = find_head(model, task, examples[:2])
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Outputs(model, task, head).eval(),
                args=(),
                kwargs={"inputs": sample},
                dynamic_shapes={"inputs": dynamic},
                input_names=list(sample),
                output_names=["outputs"] if head is None else ["outputs", "features"],
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch raises many kinds
        raise ModelError(f"the model cannot be exported to ONNX: {error}") from error
    assert program is not None
    weight_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    program.save(str(path), external_data=weight_bytes > SINGLE_FILE_BYTES)
    return head is not None


def _largest_gap(model: nn.Module, task: Any, examples: Sequence[Example], path: Path) -> float:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    gap = 0.0
    # One by one, two by two, then all: a dimension that was frozen by mistake shows in one of them.
    groups = [[example] for example in examples] + [examples[i : i + 2] for i in range(0, len(examples) - 1, 2)]
    for group in [*groups, list(examples)]:
        inputs: dict[str, Tensor] = task.model_inputs(task.collate(group))
        with torch.no_grad():
            expected = task.outputs(model, inputs).numpy()
        found = run_session(session, {name: tensor.numpy() for name, tensor in inputs.items()})
        if found.shape != expected.shape or not np.isfinite(found).all():
            return float("inf")
        gap = max(gap, float(np.abs(found - expected).max()))
    return gap


def run_session(session: Any, inputs: Mapping[str, Array]) -> Array:
    """Outputs of ONNX Runtime for the inputs it was exported with."""
    return run_with_features(session, inputs)[0]


def run_with_features(session: Any, inputs: Mapping[str, Array]) -> tuple[Array, Array | None]:
    """Outputs, and features ``[B, width]`` where the model has them."""
    outputs, *features = session.run(None, {one.name: inputs[one.name] for one in session.get_inputs()})
    return outputs, features[0] if features else None


def _replace_folder(new: Path, old: Path) -> None:
    aside = old.with_name(f".{old.name}.old-{os.getpid()}")
    remove_tree(aside)
    if old.exists():
        os.rename(old, aside)
    old.parent.mkdir(parents=True, exist_ok=True)
    os.rename(new, old)
    shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter tells of every optional package that is missing, on three channels.
    names = ("torch.onnx", "torch.export", "torch.__trace", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
