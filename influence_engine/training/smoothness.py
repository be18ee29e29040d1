"""Which settings to change where training answers its examples too unevenly for a derivative to describe.

What was measured, each at about the same loss after training: half of the steps as warm-up instead of a tenth took a
fifth to a third off the nonlinearity, since Adam's first steps are little more than signs; so did adapters of a larger
scale at a smaller learning rate, whose inner factor then stays where it was drawn. A larger epsilon, other betas or
plain gradient descent did not help (``benchmarks/RESULTS.md``).
"""

from __future__ import annotations

from influence_engine.training.settings import FinetuneSettings

LONG_WARMUP = 0.3
"""Share of the steps from which on a longer warm-up brings little."""

LARGE_SCALE = 16.0
"""Scale ``alpha / r`` of adapters from which on a larger one brings little."""


def smoother(settings: FinetuneSettings | None) -> str:
    """What to change, in words; ``settings`` are None where another trainer's are not known."""
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
