"""Settings of a fine-tuning run, with defaults that work."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from influence_engine.models.trainable import CHOICES

ModuleName = Annotated[str, Field(min_length=1)]

Trainable = (
    Literal["all", "lora"] | Annotated[int, Field(ge=1, strict=True)] | Annotated[list[ModuleName], Field(min_length=1)]
)
"""``"all"`` weights; ``"lora"`` adapters; a number of upper layers, with all that comes after them (the head); or a
list of names and glob patterns of parameters and modules."""


class LoraSettings(BaseModel):
    """Low-rank adapters, used where ``trainable`` is ``"lora"``.

    Attributes:
        r: Rank of each adapter.
        alpha: Scale; an adapter adds ``alpha / r * B A x``.
        target_modules: Names of the linear modules that get an adapter; ``None`` takes PEFT's choice for the
            architecture, and every linear layer where it has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    target_modules: list[str] | None = Field(None, min_length=1)


class FinetuneSettings(BaseModel):
    """Settings of one fine-tuning run; with model, data and library versions they determine the resulting weights.

    Attributes:
        trainable: Which weights are trained: ``"all"``, ``"lora"``, a number of upper layers, or a list of names and
            glob patterns such as ``["classifier", "bert.encoder.layer.5.*"]`` (``choose_trainable``).
        lora: The adapters, where ``trainable`` is ``"lora"``.
        epochs: Passes over the training examples, each in its own seeded order.
        batch_size: Examples in one forward and backward pass, at most; those of similar length share one.
        accumulation: A step takes ``batch_size * accumulation`` examples.
        learning_rate: The highest learning rate, at the end of the warm-up.
        schedule: The learning rate after the warm-up: it falls to 0 linearly or along a cosine, or is constant.
        warmup_ratio: Share of the steps over which the learning rate rises linearly from 0.
        optimizer: AdamW with epsilon inside the square root, or SGD with momentum.
        momentum: SGD's momentum.
        betas: AdamW's decay rates of the first and second moment.
        epsilon: AdamW's epsilon, in the units of a gradient: the step is ``m / sqrt(v + epsilon**2)``.
        weight_decay: Decoupled decay, applied to matrices only (not to biases and normalisation weights).
        max_grad_norm: Gradients of a larger global norm are scaled down to this one; ``None`` never scales.
        dropout: Probability of every dropout layer. 0 trains in evaluation mode; otherwise each step has a seed.
        seed: Determines the fresh head, the adapters, the order of the examples and the dropout masks.
        checkpoints: How many times a recorded run saves weights and optimiser state (the start not counted);
            ``None`` takes about the square root of the number of steps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trainable: Trainable = "all"
    lora: LoraSettings = LoraSettings()
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(1e-4, gt=0, allow_inf_nan=False)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    epsilon: float = Field(1e-6, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False)
    max_grad_norm: float | None = Field(1.0, gt=0, allow_inf_nan=False)
    dropout: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**63)
    checkpoints: int | None = Field(None, ge=1)

    @field_validator("trainable", mode="before")
    @classmethod
    def _one_message_for_trainable(cls, value: Any) -> Any:
        # Left to itself, the union would answer with one error for each of its members.
        number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        names = isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) and one for one in value)
        if not number and not names and value not in ("all", "lora"):
            raise ValueError(f"got {value!r}; allowed are {CHOICES}")
        return list(value) if names else value
