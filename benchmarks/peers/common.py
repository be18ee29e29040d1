"""What the peers share: the model and data as they want them, what a method returns, and clocks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from floor import settle
from torch import Tensor, nn
from torch.utils.data import DataLoader
from work import Work

from influence_engine.resources import choose_device
from influence_engine.tasks import Example
from influence_engine.training.step import put_parameters

COLUMNS = ("input_ids", "token_type_ids", "attention_mask", "labels")
"""What a batch consists of, in this order: TRAK's own order for text classification."""


class Seconds:
    """What a stage took: by the clock, and of the processor, which other work beside it does not lengthen as much."""

    def __init__(self, wall: float = 0.0, processor: float = 0.0) -> None:
        self.wall, self.processor = wall, processor

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Adds what the block takes."""
        settle()
        wall, processor = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            settle()
            self.wall += time.perf_counter() - wall
            self.processor += time.process_time() - processor


@dataclass(frozen=True)
class Candidate:
    """A method at one setting.

    Attributes:
        setting: In words.
        influences: ``[Q, N]``, positive supports; columns in the order of the training examples.
        default: Whether it is what the package does unless told otherwise.
    """

    setting: str
    influences: Tensor
    default: bool = False


@dataclass
class Scored:
    """What a method says at all its settings.

    Attributes:
        candidates: One a setting; queries choose among them.
        prepare: Before the first query.
        answer: All queries, at one setting.
        bytes_an_example: Kept on disk or in memory for each training example between queries.
        bytes_once: Kept besides, whatever the number of examples; without the model itself.
        note: What had to be reduced, and why.
    """

    candidates: list[Candidate]
    prepare: Seconds
    answer: Seconds
    bytes_an_example: float
    bytes_once: float
    note: str = ""


@dataclass(frozen=True)
class Method:
    """A method of a package, not run yet.

    Attributes:
        name: For the table.
        package: Its distribution on PyPI; None for ours.
        compute: Runs it; may write into the folder that it is given.
        settings: All that its result depends on besides the work.
    """

    name: str
    package: str | None
    compute: Callable[[Material, Path], Scored]
    settings: Mapping[str, Any] = field(default_factory=dict)


class Classifier(nn.Module):
    """The fine-tuned model as the peers can take it: positional inputs, logits out, trained weights as parameters.

    Frozen weights become buffers, so that no peer spends time or memory on their gradients. The attention mask is
    handed down in the additive form that attention ends up with: the model's own preparation of a mask looks at its
    values, which ``torch.func.vmap`` does not allow.
    """

    def __init__(self, model: nn.Module, trained: Sequence[str]) -> None:
        super().__init__()
        for name in [name for name, _ in model.named_parameters() if name not in set(trained)]:
            parent, _, leaf = name.rpartition(".")
            module = model.get_submodule(parent)
            frozen = module._parameters.pop(leaf)
            assert frozen is not None
            module.register_buffer(leaf, frozen.detach())
        self.model = model.eval()

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * torch.finfo(torch.float32).min
        logits: Tensor = self.model(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            attention_mask=hidden.expand(-1, 1, input_ids.shape[-1], -1),
        ).logits
        return logits

    def trained_linear(self) -> list[str]:
        """Names of the linear layers that were trained."""
        return [
            name
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear) and "weight" in module._parameters
        ]


class Material:
    """The work as the peers want it.

    Training examples come in the order of their length, so that batches hold little padding. Models and batches are on
    the device that ours uses.

    Attributes:
        work: The work.
        device: That device.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.device = choose_device()
        encoded = work.task.collate(work.train)["attention_mask"].sum(1)
        self._order: list[int] = encoded.argsort(stable=True).tolist()

    def classifier(self, step: int | None = None) -> Classifier:
        """A fresh copy of the fine-tuned model, or of what it was after a recorded step."""
        model = self.work.run.load_model()
        if step is not None:
            put_parameters(model, self.work.run.checkpoint(step)[0])
        return Classifier(model, self.work.run.trainable).to(self.device)

    def train(self, batch_size: int) -> DataLoader[Any]:
        """Training examples, the shortest first."""
        return self._loader([self.work.train[row] for row in self._order], batch_size)

    def queries(self, batch_size: int) -> DataLoader[Any]:
        """The queries in their order."""
        return self._loader(self.work.queries, batch_size)

    def batch(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        """``COLUMNS`` of some examples."""
        collated = self.work.task.collate(examples)
        return tuple(collated[name].to(self.device) for name in COLUMNS)

    def by_example(self, influences: Tensor) -> Tensor:
        """``[Q, N]`` with the columns of ``train`` put into the order of the training examples, on the processor."""
        result = torch.empty_like(influences, device="cpu")
        result[:, self._order] = influences.cpu()
        return result

    def _loader(self, examples: Sequence[Example], batch_size: int) -> DataLoader[Any]:
        return DataLoader(list(examples), batch_size, shuffle=False, collate_fn=self.batch)  # type: ignore[arg-type]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-odds of the label, ``[B]``: the measurement."""
    target = labels.unsqueeze(-1)
    others = logits.scatter(-1, target, float("-inf"))
    return logits.gather(-1, target).squeeze(-1) - others.logsumexp(-1)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
