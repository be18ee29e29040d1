"""Displacement of the final weights per change of one step's gradient, with the other steps' gradients as recorded.

For AdamW, with ``rho_t = sqrt(v_t / (1 - b2^t) + eps^2)`` and ``m_t`` the first moment after step ``t``, a change ``d``
of the gradient ``g_s`` of step ``s`` displaces the final weights, coordinate by coordinate, by ``-(E_s + L_s) d``:

* ``E_s = (1 - b1) sum_{t>=s} eta_t b1^(t-s) / ((1 - b1^t) rho_t)``, through the first moment,
* ``L_s = -(1 - b2) g_s sum_{t>=s} eta_t b2^(t-s) m_t / ((1 - b1^t) (1 - b2^t) rho_t^3)``, through the second moment:
  a larger gradient makes all later steps shorter.

For SGD ``E_s = sum_{t>=s} eta_t momentum^(t-s)`` and there is no ``L``. Both sums are accumulated from the last step
back. The formulas are this project's own derivation: the chain rule applied to the update of ``optimizers.AdamW``. They
leave out weight decay, which the caller of this module accounts for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from influence_engine.errors import RecordError
from influence_engine.training.optimizers import SGD, AdamW, Optimizer, OptimizerState, Parameters


@dataclass(frozen=True)
class ImpulseResponse:
    """How the displacement for a change of step ``s``'s gradient is spread over the steps ``t >= s``.

    Step ``t`` contributes the share ``rate_t decay^(t-s) / sum_{u>=s} rate_u decay^(u-s)``.

    Attributes:
        rates: ``[T]``.
        decay: Per step: of a moment, ``b1`` or ``b2``, or SGD's momentum.
    """

    rates: Tensor
    decay: float

    def totals(self) -> Tensor:
        """``sum_{t>=s} rate_t decay^(t-s)`` for each step ``s``, ``[T]``."""
        totals = torch.zeros_like(self.rates)
        rest = 0.0
        for place in range(len(self.rates) - 1, -1, -1):
            rest = float(self.rates[place]) + self.decay * rest
            totals[place] = rest
        return totals


class Sensitivity(Protocol):
    """Accumulates the sums in ``E`` and ``L`` from the last step back."""

    def backward(
        self, number: int, learning_rate: float, before: OptimizerState, after: OptimizerState
    ) -> tuple[Parameters, Parameters | None, Parameters]:
        """Adds the terms of step ``number``, the one before the step that was added last.

        Args:
            number: Of the step; the first is 1.
            learning_rate: Of the step.
            before: The optimiser's state before the step.
            after: The optimiser's state after the step.

        Returns:
            By parameter name ``E``, ``L`` (None where there is none) and the step's gradient after clipping.
        """

    def impulse_responses(self, learning_rates: Tensor) -> tuple[ImpulseResponse, ImpulseResponse | None]:
        """Over which steps the displacements of ``E`` and of ``L`` are spread; ``learning_rates`` are ``[T]``."""

    def tensors(self) -> dict[str, Tensor]:
        """The sums so far, for a file."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the sums to what ``tensors`` returned."""


class AdamWSensitivity:
    """``E`` and ``L`` of AdamW, as in the module's docstring.

    Args:
        optimizer: The optimiser.
        parameters: The trained parameters, for their names and shapes.
    """

    def __init__(self, optimizer: AdamW, parameters: Parameters) -> None:
        self._betas, self._epsilon = optimizer.betas, optimizer.epsilon
        self._first = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self._second = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}

    def backward(
        self, number: int, learning_rate: float, before: OptimizerState, after: OptimizerState
    ) -> tuple[Parameters, Parameters | None, Parameters]:
        """Adds the terms of step ``number``; returns ``E``, ``L`` and the gradient, which the moments determine."""
        beta1, beta2 = self._betas
        rate = learning_rate / (1 - beta1**number)
        late, gradients = {}, {}
        for name, moment in after["first_moment"].items():
            root = (after["second_moment"][name] / (1 - beta2**number)).add_(self._epsilon**2).sqrt_()
            self._first[name] = self._first[name] * beta1 + (1 - beta1) * rate / root
            self._second[name] = self._second[name] * beta2 + moment / root.pow(3) * (rate / (1 - beta2**number))
            gradients[name] = (moment - beta1 * before["first_moment"][name]) / (1 - beta1)
            late[name] = gradients[name] * self._second[name] * -(1 - beta2)
        return dict(self._first), late, gradients

    def impulse_responses(self, learning_rates: Tensor) -> tuple[ImpulseResponse, ImpulseResponse | None]:
        """By the learning rates and bias corrections alone.

        Approximation: ``rho_t`` and ``m_t`` are taken as constant from step ``s`` on, so that one scalar a step serves
        all coordinates; the totals ``E`` and ``L`` are exact.
        """
        numbers = torch.arange(1, len(learning_rates) + 1, dtype=torch.float64)
        first, second = (ImpulseResponse(learning_rates / (1 - beta**numbers), beta) for beta in self._betas)
        return first, second

    def tensors(self) -> dict[str, Tensor]:
        """The sums so far, by ``first/NAME`` and ``second/NAME``."""
        first = {f"first/{name}": tensor for name, tensor in self._first.items()}
        return first | {f"second/{name}": tensor for name, tensor in self._second.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the sums to what ``tensors`` returned."""
        for name, tensor in self._first.items():
            self._first[name] = tensors[f"first/{name}"].to(tensor)
            self._second[name] = tensors[f"second/{name}"].to(tensor)


class SGDSensitivity:
    """``E`` of SGD, as in the module's docstring: the same number for every coordinate.

    Args:
        optimizer: The optimiser.
    """

    def __init__(self, optimizer: SGD) -> None:
        self._momentum = optimizer.momentum
        self._sum = 0.0

    def backward(
        self, number: int, learning_rate: float, before: OptimizerState, after: OptimizerState
    ) -> tuple[Parameters, Parameters | None, Parameters]:
        """Adds the term of step ``number``; returns ``E``, None and the gradient, which the velocity determines."""
        self._sum = learning_rate + self._momentum * self._sum
        velocity = after["velocity"]
        gradients = {name: new - self._momentum * before["velocity"][name] for name, new in velocity.items()}
        return {name: torch.full_like(new, self._sum) for name, new in velocity.items()}, None, gradients

    def impulse_responses(self, learning_rates: Tensor) -> tuple[ImpulseResponse, ImpulseResponse | None]:
        """By the learning rates, which is exact."""
        return ImpulseResponse(learning_rates, self._momentum), None

    def tensors(self) -> dict[str, Tensor]:
        """The sum so far, as ``sum``."""
        return {"sum": torch.tensor(self._sum, dtype=torch.float64)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the sum to what ``tensors`` returned."""
        self._sum = float(tensors["sum"])


def sensitivity_of(optimizer: Optimizer, parameters: Parameters) -> Sensitivity:
    """The sensitivity of an optimiser's final weights, before the terms of any step are added.

    Args:
        optimizer: The optimiser.
        parameters: The trained parameters, for their names and shapes.

    Raises:
        RecordError: the optimiser is of another type.
    """
    if isinstance(optimizer, AdamW):
        return AdamWSensitivity(optimizer, parameters)
    if isinstance(optimizer, SGD):
        return SGDSensitivity(optimizer)
    raise RecordError(f"the steps of {type(optimizer).__name__} are not known here", field="optimizer")
