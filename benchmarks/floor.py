"""What no explanation can be faster than: the passes of its text, and one read of what the index holds in memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from influence_engine import Run, TextClassification
from influence_engine.gradients import tracing, track
from influence_engine.resources import choose_device, to_device


def bandwidth() -> float:
    """Bytes a second at which this machine's GPU, or else its processor, reads memory it has not just read."""
    device = choose_device()
    block = torch.ones((64 if device.type == "cpu" else 1024) * 1024 * 1024, dtype=torch.float32, device=device)
    return block.numel() * 4 / statistics.median(seconds(block.sum, 9)[2:])


class Passes:
    """The passes of single texts through a run's model, forward and back over activations."""

    def __init__(self, run: Run) -> None:
        self._device = choose_device()
        self._model = run.load_model().to(self._device)
        self._task = TextClassification(run.load_processor(), ["negative", "positive"])
        self._layers = track(self._model).layers

    def ms(self, text: str) -> tuple[float, float]:
        """Of one text, forward and backward."""
        batch = to_device(self._task.collate([{"text": text}]), self._device)
        settle()
        start = time.perf_counter()
        with tracing(self._model, self._task, self._layers, batch) as trace:
            settle()
            middle = time.perf_counter()
            trace.layer_gradients(self._task.measurement(trace.outputs, trace.batch))
            settle()
        return (middle - start) * 1000, (time.perf_counter() - middle) * 1000


def passes_ms(run: Run, texts: Sequence[str]) -> tuple[float, float]:
    """Medians of forward and of backward over activations."""
    passes = Passes(run)
    return medians([passes.ms(text) for text in texts])


def medians(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Of each."""
    return statistics.median(one for one, _ in pairs), statistics.median(other for _, other in pairs)


def seconds(work: Callable[[], object], times: int) -> list[float]:
    """What each of so many executions took."""
    taken = []
    for _ in range(times):
        settle()
        start = time.perf_counter()
        work()
        settle()
        taken.append(time.perf_counter() - start)
    return taken


def settle() -> None:
    """Waits for the GPU, where there is one: its work is asynchronous."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
