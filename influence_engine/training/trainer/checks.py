"""Describes a run of the Trainer for its record, and finds what keeps its steps from being executed again."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from influence_engine.models.trainable import has_running_statistics
from influence_engine.training.optimizers import SGD, AdamW, OptimizerState, SmoothAdamW

_RECORDED_ARGUMENTS = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "data_seed",
    "fp16",
    "gradient_accumulation_steps",
    "label_smoothing_factor",
    "learning_rate",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "optim",
    "per_device_train_batch_size",
    "seed",
    "warmup_ratio",
    "warmup_steps",
    "weight_decay",
)


@dataclass(frozen=True)
class OptimizerDescription:
    """An optimiser of torch as a record describes it.

    Attributes:
        description: What ``Optimizer.describe`` returns for the equivalent optimiser of this package.
        moments: By the name of a kind of state in a record, its name in torch.
        reasons: Why the optimiser's steps cannot be executed again; none if they can be.
    """

    description: dict[str, Any]
    moments: Mapping[str, str]
    reasons: list[str]

    def state(self, optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> OptimizerState:
        """The optimiser's present state by kind and parameter name; zero where it has none yet."""
        state: OptimizerState = {kind: {} for kind in self.moments}
        for parameter, name in names.items():
            found = optimizer.state.get(parameter, {})
            for kind, torch_name in self.moments.items():
                value = found.get(torch_name)
                state[kind][name] = value if isinstance(value, Tensor) else torch.zeros_like(parameter)
        return state


def arguments_of(args: Any) -> dict[str, Any]:
    """The Trainer's arguments that determine the trained weights, as JSON."""
    values = {name: getattr(args, name, None) for name in _RECORDED_ARGUMENTS}
    return {name: value.value if isinstance(value, enum.Enum) else value for name, value in values.items()}


def describe_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> OptimizerDescription:
    """Describes an optimiser of torch; ``names`` are those of the parameters that it should train."""
    groups = optimizer.param_groups
    decay = {names[p]: float(g.get("weight_decay", 0.0)) for g in groups for p in g["params"] if p in names}
    reasons = []
    if set(decay) != set(names.values()):
        reasons.append("some parameters that have gradients are not in the optimiser; freeze them (requires_grad)")
    if any(len({_value(group.get(key)) for group in groups}) > 1 for key in ("betas", "momentum", "epsilon", "eps")):
        reasons.append("the optimiser's groups differ in more than their weight decay")
    decay = {name: value for name, value in decay.items() if value}
    first = groups[0]
    if isinstance(optimizer, SmoothAdamW):
        description = AdamW(tuple(first["betas"]), first["epsilon"], decay).describe()
        return OptimizerDescription(description, {kind: kind for kind in ("first_moment", "second_moment")}, reasons)
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        reasons.append("torch's Adam has its epsilon outside the root; pass optimizers=(SmoothAdamW(...), None)")
        description = AdamW(tuple(first["betas"]), first["eps"], decay).describe()
        return OptimizerDescription(description, {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"}, reasons)
    if isinstance(optimizer, torch.optim.SGD):
        if decay or first["nesterov"] or first["dampening"]:
            reasons.append("of torch's SGD only plain momentum without weight decay can be executed again")
        return OptimizerDescription(SGD(first["momentum"]).describe(), {"velocity": "momentum_buffer"}, reasons)
    reasons.append(f"the optimiser is {type(optimizer).__name__}; pass optimizers=(SmoothAdamW(...), None)")
    return OptimizerDescription({"type": type(optimizer).__name__}, {}, reasons)


def obstacles(args: Any, model: nn.Module, *, steps_done: int, dropout_seed: int | None) -> list[str]:
    """Why the steps of a run with these arguments and this model cannot be executed again; none if they can be."""
    reasons = [
        f"trained in {kind}; train in 32-bit floats ({kind}=False)" for kind in ("bf16", "fp16") if getattr(args, kind)
    ]
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        reasons.append("the model's weights are not 32-bit floats; load it with dtype=torch.float32")
    if args.world_size > 1 or args.n_gpu > 1:
        reasons.append("trained on several devices; use one process and one device")
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if attention not in (None, "eager"):
        reasons.append(f"attention is {attention!r}; load the model with attn_implementation='eager'")
    rates = dropout_rates(model)
    if rates and dropout_seed is None:
        reasons.append("dropout without recorded seeds; set it to 0 in the model's config, or pass dropout_seed")
    if len(rates) > 1:
        reasons.append(f"dropout differs from layer to layer ({sorted(rates)}); use one value")
    if any(has_running_statistics(module) for module in model.modules()):
        reasons.append("batch normalisation in training mode makes an example's loss depend on the rest of its batch")
    if args.label_smoothing_factor:
        reasons.append("label smoothing changes the Trainer's loss; put it into the task's loss instead")
    if getattr(args, "neftune_noise_alpha", None):
        reasons.append("NEFTune adds noise without recorded seeds")
    if args.load_best_model_at_end:
        reasons.append("load_best_model_at_end replaces the last weights by earlier ones")
    if steps_done:
        reasons.append(f"the Trainer went on from its step {steps_done}, so earlier steps are not on record")
    return reasons


def dropout_rates(model: nn.Module) -> set[float]:
    """All dropout probabilities but 0, of dropout layers and of attention modules that hold theirs as a number."""
    rates: set[float] = set()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            rates.add(float(module.p))
        rates |= {value for name, value in vars(module).items() if name.endswith("dropout") and type(value) is float}
    return rates - {0.0}


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
