"""Baselines that influences are compared with: text search, embeddings, training loss, gradients without curvature.

All of them are ``[Q, N]`` with positive for support, like influences, but in units of their own. Similarities know
nothing of labels and are signed by them: an example with the query's target label supports it, any other opposes it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from influence_engine.errors import DataError
from influence_engine.gradients import LayerGradient, TrackedLayers, tracing
from influence_engine.progress import Progress, silent
from influence_engine.resources import to_device
from influence_engine.tasks import Batch, Example, Task, choose_targets

_BATCH = 32
_QUERIES_AT_ONCE = 16


def signed_by_label(similarity: Tensor, train: Sequence[Example], queries: Sequence[Example], label: str) -> Tensor:
    """Similarities ``[Q, N]``, negated where an example has not the query's label; ``label`` is the target field."""
    same = torch.tensor([[example[label] == query[label] for example in train] for query in queries])
    return torch.where(same, similarity, -similarity)


def bm25(train: Sequence[str], queries: Sequence[str], *, k1: float = 1.5, b: float = 0.75) -> Tensor:
    """Okapi BM25 of every training text for every query (Robertson and Zaragoza 2009), ``[Q, N]``.

    Words are runs of letters and digits in lower case.
    """
    documents = [_words(text) for text in train]
    mean_length = sum(map(len, documents)) / len(documents)
    frequencies = Counter(word for document in documents for word in set(document))
    counts = [Counter(document) for document in documents]
    scores = torch.zeros(len(queries), len(documents))
    for row, query in enumerate(queries):
        for word in _words(query):
            frequency = frequencies.get(word, 0)
            if not frequency:
                continue
            # Deviation: 1 is added within the logarithm, so that the weight of a frequent word is never negative.
            weight = math.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
            for column, count in enumerate(counts):
                if word in count:
                    length = 1 - b + b * len(documents[column]) / mean_length
                    scores[row, column] += weight * count[word] * (k1 + 1) / (count[word] + k1 * length)
    return scores


def embedding_similarity(base: nn.Module, task: Task, train: Sequence[Example], queries: Sequence[Example]) -> Tensor:
    """Cosine of the base model's embeddings, ``[Q, N]``.

    The embedding is the mean over positions of the last hidden state where the model has one (a ``transformers``
    encoder), else the input of its last linear layer.
    """
    embedded = [nn.functional.normalize(_embeddings(base, task, examples), dim=1) for examples in (queries, train)]
    return embedded[0] @ embedded[1].T


def gradient_products(
    model: nn.Module, task: Task, tracked: TrackedLayers, train: Sequence[Example], queries: Sequence[Example]
) -> tuple[Tensor, Tensor]:
    """Gradient product ``-<grad measurement_q, grad loss_i>`` and its cosine, ``[Q, N]`` each.

    The products are exact, over all trained parameters, at the final weights.

    Every query's gradient is materialised, ``16`` at a time; the training gradients stay factors.
    """
    products, norms = torch.zeros(len(queries), len(train)), torch.zeros(len(train))
    query_norms = torch.zeros(len(queries))
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        chosen = queries[start : start + _QUERIES_AT_ONCE]
        dense = {
            name: gradient.dense() for name, gradient in _gradients(model, task, tracked, chosen, loss=False).items()
        }
        stop = start + len(chosen)
        query_norms[start:stop] = torch.stack([g.pow(2).sum((1, 2)) for g in dense.values()]).sum(0).sqrt().cpu()
        for first in range(0, len(train), _BATCH):
            batch = train[first : first + _BATCH]
            gradients = _gradients(model, task, tracked, batch, loss=True)
            for place in range(len(chosen)):
                by_layer = [g.inner(dense[name][place]) for name, g in gradients.items() if name in dense]
                products[start + place, first : first + len(batch)] = torch.stack(by_layer).sum(0).cpu()
            if start == 0:
                squares = torch.stack([g.squared_norms() for g in gradients.values()]).sum(0)
                norms[first : first + len(batch)] = squares.sqrt().cpu()
    scale = (query_norms[:, None] * norms).clamp_min(1e-30)
    return -products, -products / scale


def training_losses(model: nn.Module, task: Task, examples: Sequence[Example], progress: Progress = silent) -> Tensor:
    """Loss of each example on its own target, ``[N]``, in double precision.

    Raises:
        DataError: a loss is not finite; the message names the example.
    """
    losses = torch.empty(len(examples), dtype=torch.float64)
    # Examples of like size share a batch: less of it is padding.
    order = sorted(range(len(examples)), key=lambda row: len(str(examples[row])))
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        batch = _batch(model, task, [examples[row] for row in rows])
        with torch.no_grad():
            losses[rows] = task.loss(task.outputs(model.eval(), batch), batch).double().cpu()
        progress("training losses", start + len(rows), len(order))
    not_finite = (~losses.isfinite()).nonzero().flatten().tolist()
    if not_finite:
        row = not_finite[0]
        message = f"the loss of training example {examples[row]['example_id']!r} is {float(losses[row])}, not finite"
        raise DataError(message, field="loss")
    return losses


def _gradients(
    model: nn.Module, task: Task, tracked: TrackedLayers, examples: Sequence[Example], *, loss: bool
) -> dict[str, LayerGradient]:
    with tracing(model, task, tracked.layers, _batch(model, task, examples)) as trace:
        if loss:
            return trace.layer_gradients(task.loss(trace.outputs, trace.batch))
        batch = choose_targets(task, trace.outputs, trace.batch)
        return trace.layer_gradients(task.measurement(trace.outputs, batch))


def _embeddings(base: nn.Module, task: Task, examples: Sequence[Example]) -> Tensor:
    parts: list[Tensor] = []
    seen: list[Tensor] = []
    body = getattr(base, "base_model", None)
    if isinstance(body, nn.Module) and body is not base:
        handle = body.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
    else:
        linear = [module for module in base.modules() if isinstance(module, nn.Linear)]
        handle = linear[-1].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        for start in range(0, len(examples), _BATCH):
            batch = _batch(base, task, examples[start : start + _BATCH])
            seen.clear()
            with torch.no_grad():
                task.outputs(base.eval(), batch)
            parts.append(_pooled(seen[0], batch.get("attention_mask")).float().cpu())
    finally:
        handle.remove()
    return torch.cat(parts)


def _pooled(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if hidden.dim() == 2:
        return hidden
    flat = hidden.flatten(1, -2)
    if mask is None or mask.shape != flat.shape[:2]:
        return flat.mean(1)
    weights = mask.to(flat.dtype).unsqueeze(-1)
    return (flat * weights).sum(1) / weights.sum(1).clamp_min(1)


def _batch(model: nn.Module, task: Task, examples: Sequence[Example]) -> Batch:
    return to_device(task.collate(examples), next(model.parameters()).device)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
