"""Fine-tuning that records itself, so that it can be executed again, in part or with other weights."""

from influence_engine.training.loop import Finetuned, finetune
from influence_engine.training.record import Run
from influence_engine.training.reexecution import in_recorded_order, reexecute
from influence_engine.training.settings import FinetuneSettings, LoraSettings

__all__ = [
    "FinetuneSettings",
    "Finetuned",
    "LoraSettings",
    "Run",
    "finetune",
    "in_recorded_order",
    "reexecute",
]
