"""Runs the last layer of a BERT-like classifier for the first position (the ``[CLS]`` token) alone.

BERT and its relatives classify a text by the last layer's output at the first position. That layer needs the other
positions as keys and values only; the attention's output projection and the feed-forward block, two thirds of the
layer, are computed for the other positions and discarded. Within ``first_position_only`` they are not computed. Values
and gradients are the same up to rounding.
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
"""Classifiers of ``transformers`` whose head reads the first position only, with the name of their encoder module."""


def reads_first_position(model: nn.Module) -> bool:
    """Whether the model is, or has within it, a classifier that ``first_position_only`` computes in another way."""
    return _classifier(model) is not None


@contextlib.contextmanager
def first_position_only(model: nn.Module) -> Iterator[None]:
    """Within it, calls of the classifier leave out what its head does not read; calls of other modules are unchanged.

    A call that asks for hidden states or attentions computes all of them.

    Args:
        model: Any model; one that neither is nor contains such a classifier is left as it is.
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
        # An attention that returns its cached output (``FrozenPrefix.reusing``) is not to be run at all.
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
    """The classifier in a model, or None; a class of the same name that is not from ``transformers`` does not count."""
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
