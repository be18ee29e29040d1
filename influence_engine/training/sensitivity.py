"""How far the final weights move for a gradient that was a little different at one step, later ones as recorded.

For AdamW, with ``rho_t = sqrt(v_t / (1 - b2^t) + eps^2)`` and ``m_t`` the first moment after step ``t``, a change ``d``
of the gradient ``g_s`` of step ``s`` moves the final weights, number by number, by ``-(E_s + L_s) d``:

* ``E_s = (1 - b1) sum_{t>=s} eta_t b1^(t-s) / ((1 - b1^t) rho_t)``, through the first moment,
* ``L_s = -(1 - b2) g_s sum_{t>=s} eta_t b2^(t-s) m_t / ((1 - b1^t) (1 - b2^t) rho_t^3)``, through the second one:
  a larger gradient makes all later steps shorter.

For SGD ``E_s = sum_{t>=s} eta_t momentum^(t-s)`` and there is no ``L``. Both sums are gathered from the last step back.
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
class Release:
    """When such a change arrives: the share ``rate_t decay^(t-s)``, over its sum, at each step ``t >= s``.

    Attributes:
        rates: ``[T]``.
        decay: Of what is left, a step.
    """

    rates: Tensor
    decay: float

    def totals(self) -> Tensor:
        """``sum_{t>=s} rate_t decay^(t-s)`` for each ``s``, ``[T]``."""
        totals = torch.zeros_like(self.rates)
        rest = 0.0
        for place in range(len(self.rates) - 1, -1, -1):
            rest = float(self.rates[place]) + self.decay * rest
            totals[place] = rest
        return totals


class Sensitivity(Protocol):
    """Gathers the sums from the last step back."""

    def back(
        self, number: int, learning_rate: float, before: OptimizerState, after: OptimizerState
    ) -> tuple[Parameters, Parameters | None, Parameters]:
        """Goes back over step ``number``; returns ``E``, ``L`` (or ``None``) and the gradient after clipping."""

    def releases(self, learning_rates: Tensor) -> tuple[Release, Release | None]:
        """When what ``E`` and what ``L`` stand for arrives."""

    def tensors(self) -> dict[str, Tensor]:
        """The sums so far, to be kept."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from sums that were kept."""


class AdamWSensitivity:
    """See the module."""

    def __init__(self, optimizer: AdamW, parameters: Parameters) -> None:
        self._betas, self._epsilon = optimizer.betas, optimizer.epsilon
        self._first = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self._second = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}

    def back(
        self, number: int, learning_rate: float, before: OptimizerState, after: OptimizerState
    ) -> tuple[Parameters, Parameters | None, Parameters]:
        """See ``Sensitivity``."""
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

    def releases(self, learning_rates: Tensor) -> tuple[Release, Release | None]:
        """See ``Sensitivity``; the changes of ``rho`` and of the first moment meanwhile are left out."""
        numbers = torch.arange(1, len(learning_rates) + 1, dtype=torch.float64)
        first, second = (Release(learning_rates / (1 - beta**numbers), beta) for beta in self._betas)
        return first, second

    def tensors(self) -> dict[str, Tensor]:
        """See ``Sensitivity``."""
        first = {f"first/{name}": tensor for name, tensor in self._first.items()}
        return first | {f"second/{name}": tensor for name, tensor in self._second.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See ``Sensitivity``."""
        for name, tensor in self._first.items():
            self._first[name] = tensors[f"first/{name}"].to(tensor)
            self._second[name] = tensors[f"second/{name}"].to(tensor)


class SGDSensitivity:
    """See the module."""

    def __init__(self, optimizer: SGD, parameters: Parameters) -> None:
        self._momentum = optimizer.momentum
        self._sum = 0.0

    def back(
        self, number: int, learning_rate: float, before: OptimizerState, after: OptimizerState
    ) -> tuple[Parameters, Parameters | None, Parameters]:
        """See ``Sensitivity``."""
        self._sum = learning_rate + self._momentum * self._sum
        velocity = after["velocity"]
        gradients = {name: new - self._momentum * before["velocity"][name] for name, new in velocity.items()}
        return {name: torch.full_like(new, self._sum) for name, new in velocity.items()}, None, gradients

    def releases(self, learning_rates: Tensor) -> tuple[Release, Release | None]:
        """See ``Sensitivity``."""
        return Release(learning_rates, self._momentum), None

    def tensors(self) -> dict[str, Tensor]:
        """See ``Sensitivity``."""
        return {"sum": torch.tensor(self._sum, dtype=torch.float64)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See ``Sensitivity``."""
        self._sum = float(tensors["sum"])


def sensitivity_of(optimizer: Optimizer, parameters: Parameters) -> Sensitivity:
    """The sums of an optimiser, at the end of its training.

    Raises:
        RecordError: its steps are not known here.
    """
    if isinstance(optimizer, AdamW):
        return AdamWSensitivity(optimizer, parameters)
    if isinstance(optimizer, SGD):
        return SGDSensitivity(optimizer, parameters)
    raise RecordError(f"the steps of {type(optimizer).__name__} are not known here", field="optimizer")
