"""Training by the Trainer of transformers, recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments

from influence_engine.tasks import TextClassification
from influence_engine.training import Run, reexecute
from influence_engine.training.optimizers import SmoothAdamW
from influence_engine.training.trainer.callback import RecordingCallback, RecordingDataset

COUNT = 22


class Recorded:
    """Trains by the Trainer with a recording, as a user would write it."""

    def __init__(self, task: TextClassification, folder: Path, examples: list[dict[str, Any]]) -> None:
        self.task, self.folder, self.examples = task, folder, examples

    def __call__(
        self,
        model: nn.Module,
        *,
        optimizer: Any = "smooth",
        dropout_seed: int | None = None,
        collator: Any = None,
        callbacks: tuple[Any, ...] = (),
        trainer_class: type[Trainer] = Trainer,
        **arguments: Any,
    ) -> Run:
        recording = RecordingCallback(self.task, self.folder / "run", dropout_seed=dropout_seed)
        if optimizer == "smooth":
            optimizer = SmoothAdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.01)
        settings: dict[str, Any] = {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 5e-3,
            "max_grad_norm": 0.05,
            "seed": 5,
        }
        self.trainer = trainer_class(
            model,
            TrainingArguments(
                output_dir=str(self.folder / "trainer"),
                save_strategy=arguments.pop("save_strategy", "no"),
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                **{**settings, **arguments},
            ),
            train_dataset=RecordingDataset(self.examples),
            eval_dataset=RecordingDataset(self.examples[:5]),
            data_collator=collator or recording.collate,
            optimizers=(optimizer, None),
            callbacks=[recording, *callbacks],
        )
        self.trainer.train()
        return Run.open(self.folder / "run")

    def reproduces(self, run: Run) -> bool:
        """Executing the steps again leads to the Trainer's weights, up to rounding."""
        found = reexecute(run, self.task, self.examples)
        model = run.load_model()
        base, _ = run.checkpoint(0)
        for name, value in found.items():
            moved = float((model.get_parameter(name).detach() - base[name]).norm())
            if float((model.get_parameter(name).detach() - value).norm()) > 1e-3 * moved + 1e-7:
                return False
        return True
