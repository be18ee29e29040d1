"""Runs the last layer of a classifier for the first position alone, where its head reads no other.

BERT and its relatives classify a text by the last layer's output at the first position. The other positions matter to
that layer as keys and values only; its feed-forward half, two thirds of the layer, and the product after the attention
are computed for them and thrown away. Here they are not computed. Values and gradients are the same up to rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

_ENCODERS = {
    "BertForSequenceClassification": "bert",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaForSequenceClassification": "roberta",
    "CamembertForSequenceClassification": "roberta",
    "ElectraForSequenceClassification": "electra",
}
"""Classifiers of ``transformers`` whose head reads the first position, and the name of what they stand on."""


def reads_first_position(model: nn.Module) -> bool:
    """Whether ``first_position_only`` can change how the model is computed."""
    return _classifier(model) is not None


@contextlib.contextmanager
def first_position_only(model: nn.Module) -> Iterator[None]:
    """While it lasts, calls of the classifier leave out what its head does not read; other calls are as ever.

    A call that asks for hidden states or attentions gets all of them.

    Args:
        model: Any model; one that is no such classifier, or has none within it, is left as it is.
    """
    classifier = _classifier(model)
    if classifier is None:
        yield
        return
    before = vars(classifier).get("forward")
    whole = classifier.forward
    attention: Any = getattr(classifier, _ENCODERS[type(classifier).__name__]).encoder.layer[-1].attention

    def first(hidden: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        context, *more = attention.self(hidden, *args, **kwargs)
        return attention.output(context[:, :1], hidden[:, :1]), *more

    def forward(*args: Any, **kwargs: Any) -> Any:
        # An attention that answers with what was kept of it (``FrozenPrefix``) is not to be run at all.
        if _asks_for_more(classifier, kwargs) or "forward" in vars(attention):
            return whole(*args, **kwargs)
        # Only for the classifier's own call: another use of its encoder may read every position.
        attention.forward = first
        try:
            return whole(*args, **kwargs)
        finally:
            del attention.forward

    classifier.forward = forward
    try:
        yield
    finally:
        del classifier.forward
        if before is not None:
            classifier.forward = before


def _classifier(model: nn.Module) -> Any:
    """The one classifier in a model, or None; a class of the same name that is not from ``transformers`` is another."""
    for module in model.modules():
        kind = type(module)
        if kind.__name__ in _ENCODERS and kind.__module__.startswith("transformers."):
            config: Any = module.config
            return None if config.is_decoder or config.chunk_size_feed_forward else module
    return None


def _asks_for_more(classifier: Any, kwargs: dict[str, Any]) -> bool:
    return any(
        kwargs.get(name) or getattr(classifier.config, name, False)
        for name in ("output_hidden_states", "output_attentions")
    )
