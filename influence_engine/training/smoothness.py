"""Advice on fine-tuning settings where the trained model is too nonlinear a function of its examples' weights.

Then no derivative, exact or not, describes what removing examples does. What was measured, each at about the same loss
after training: half of the steps as warm-up instead of a tenth reduced the nonlinearity by a fifth to a third, since
Adam's first updates are close to the gradient's signs; so did adapters of a larger scale at a smaller learning rate,
whose ``A`` then stays close to its initial value. A larger epsilon, other betas or plain gradient descent did not help
(``benchmarks/HISTORY.md``).
"""

from __future__ import annotations

from influence_engine.training.settings import FinetuneSettings

LONG_WARMUP = 0.3
"""Share of the steps from which on a longer warm-up brings little."""

LARGE_SCALE = 16.0
"""Scale ``alpha / r`` of adapters from which on a larger one brings little."""


def smoothness_advice(settings: FinetuneSettings | None) -> str:
    """Which settings to change, in words; ``settings`` are None for a run of another trainer."""
    if settings is None:
        return "fine-tune with a longer warm-up, a lower learning rate or fewer epochs"
    changes = []
    if settings.warmup_ratio < LONG_WARMUP:
        changes.append(f"warmup_ratio 0.5 instead of {settings.warmup_ratio:g}")
    scale = settings.lora.alpha / settings.lora.r
    if settings.trainable == "lora" and scale < LARGE_SCALE:
        changes.append(
            f"lora.alpha {LARGE_SCALE * settings.lora.r:g} instead of {settings.lora.alpha:g} and a learning_rate "
            f"{LARGE_SCALE / scale:g} times lower"
        )
    changes.append(f"a learning_rate below {settings.learning_rate:g}, or fewer epochs")
    return "fine-tune with " + "; ".join(changes)
