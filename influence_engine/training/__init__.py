"""Fine-tuning that records its steps, so that they can be executed again, in part or with other example weights.

Train:
    * ``loop``: ``finetune``; ``settings``: its settings; ``result``: what it returns; ``validation``: held-out loss.
    * ``schedule``: which examples each step sees, with which weights, learning rate and seed.
    * ``step``: one training step; ``execution``: many of them; ``clipping``, ``optimizers``: its differentiable parts.
    * ``trainer/``: records a run of the Trainer of ``transformers``.

Record:
    * ``record``: ``Run``, a recorded run on disk; ``writer``, ``checkpoints``: how it is written.
    * ``identity``: what determines a run's weights, for comparing runs.

Execute again:
    * ``reexecution``: all steps, with other weights or examples; ``retraining_cache``: resumes an interrupted one.
    * ``execution_options``: what all that does this can be told.
    * ``recorded_training``: run, task, examples and model together; ``checkpoint_intervals``: the states of its steps.
    * ``frozen_cache``: runs frozen layers once for all executions.
    * ``sensitivity``: displacement of the final weights per change of a gradient; ``smoothness``: advice on settings.
"""

from influence_engine.training.loop import finetune
from influence_engine.training.record import Run
from influence_engine.training.recorded_training import RecordedTraining, in_recorded_order
from influence_engine.training.reexecution import reexecute
from influence_engine.training.result import Finetuned, FinetuningResult
from influence_engine.training.settings import FinetuneSettings, LoraSettings

__all__ = [
    "FinetuneSettings",
    "Finetuned",
    "FinetuningResult",
    "LoraSettings",
    "RecordedTraining",
    "Run",
    "finetune",
    "in_recorded_order",
    "reexecute",
]
