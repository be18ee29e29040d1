"""The result of a fine-tuning, with a record or without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class FinetuningResult(Protocol):
    """What ``finetune`` returns: a ``Run`` where ``record_to`` was given, else a ``Finetuned``.

    Code that uses these members alone works with either.
    """

    @property
    def trainable(self) -> list[str]:
        """Names of the trained parameters, in the model's order."""

    @property
    def losses(self) -> Tensor:
        """The objective before each step, ``[T]``, float64."""

    @property
    def learning_rates(self) -> Tensor:
        """Learning rate of each step, ``[T]``, float64."""

    @property
    def validation(self) -> dict[str, float] | None:
        """On the validation examples: ``examples``, mean ``loss`` and, for classifiers, ``accuracy``."""

    def load_model(self, into: nn.Module | None = None) -> nn.Module:
        """The fine-tuned model, in evaluation mode on the CPU, with ``requires_grad`` on what was trained.

        Args:
            into: A freshly built module that is filled and returned. A run needs one for a model that is not from
                ``transformers``.
        """


@dataclass(frozen=True)
class Finetuned:
    """The result of a fine-tuning that was not recorded; a ``FinetuningResult``.

    Attributes:
        model: The fine-tuned model, in evaluation mode on the CPU.
        trainable: Names of the trained parameters, in the model's order.
        losses: The objective before each step, ``[T]``, float64.
        learning_rates: Learning rate of each step, ``[T]``, float64.
        validation: On the validation examples: ``examples``, mean ``loss`` and, for classifiers, ``accuracy``.
    """

    model: nn.Module
    trainable: list[str]
    losses: Tensor
    learning_rates: Tensor
    validation: dict[str, float] | None

    def load_model(self, into: nn.Module | None = None) -> nn.Module:
        """The fine-tuned model; ``into``, a freshly built module, is filled with its weights and returned instead.

        Raises:
            RuntimeError: the weights do not fit ``into``.
        """
        if into is None:
            return self.model
        into.load_state_dict(self.model.state_dict())
        trained = set(self.trainable)
        for name, parameter in into.named_parameters():
            parameter.requires_grad_(name in trained)
        return into.eval()
