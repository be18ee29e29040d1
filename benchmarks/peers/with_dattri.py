"""dattri: EK-FAC, LoGra influence functions (Choe et al. 2024) and DVEmb (Wang et al. 2024), MIT."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from support import remark
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from influence_engine.training.checkpoint_intervals import RecordedStates
from influence_engine.training.recorded_training import RecordedTraining, in_recorded_order
from influence_engine.training.step import put_parameters
from peers.common import COLUMNS, Candidate, Classifier, Material, Method, Scored, Seconds, margin

BATCH = 32
EKFAC_DAMPINGS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
LOGRA_DIMENSIONS = 4096
"""A layer: its default."""

LOGRA_RELATIVE = (1e-1, 1.0, 10.0, 100.0)
"""Dampings of the grid, in units of the mean square of a projected gradient's coordinate."""

DVEMB_SIDE = 24
"""Each layer's gradient becomes a square of so many random coordinates."""

DVEMB_RATES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
"""Multiples of the recorded learning rates: the package follows plain gradient descent, and Adam steps further."""


def methods() -> list[Method]:
    return [
        Method("DVEmb", "dattri", _dvemb, {"side": DVEMB_SIDE, "rates": DVEMB_RATES, "version": 1}),
        Method(
            "LoGra influence", "dattri", _logra, {"dimensions": LOGRA_DIMENSIONS, "grid": LOGRA_RELATIVE, "version": 1}
        ),
        Method("EK-FAC", "dattri", _ekfac_all, {"dampings": EKFAC_DAMPINGS, "version": 2}),
        Method("EK-FAC, pooler and head only", "dattri", _ekfac_head, {"dampings": EKFAC_DAMPINGS, "version": 2}),
    ]


def _dvemb(material: Material, folder: Path) -> Scored:
    from dattri.algorithm.dvemb import DVEmbAttributor
    from dattri.task import AttributionTask

    work, model = material.work, material.classifier()
    layers = model.trained_linear()

    def loss(model: Any, data: Any, device: Any) -> Tensor:
        return functional.cross_entropy(model(*data[:-1]), data[-1])

    torch.manual_seed(0)
    attributor = DVEmbAttributor(
        AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict()),
        proj_dim=len(layers) * DVEMB_SIDE**2,
        factorization_type="kronecker",
        layer_names=layers,
    )
    examples = in_recorded_order(work.run, work.task, work.train)
    prepare, following = Seconds(), Seconds()
    with following.counted():
        followed = work.run.load_model().to(material.device)
        training = RecordedTraining(work.run, work.task, examples, followed, material.device)
        states = RecordedStates(training, training.update_rule())
        pairs = states.intervals()[::-1]
        steps_of_epoch = -(-len(examples) // len(torch.cat(list(work.run.schedule.step(1).rows))))
    for first, last in pairs:
        with following.counted():
            # The package listens to a training as it goes; the record's steps are gone through again for it.
            found = states.between(first, last)
        with prepare.counted():
            for number, (parameters, _) in enumerate(found, start=first + 1):
                step = work.run.schedule.step(number)
                put_parameters(model.model, parameters)
                rows = torch.cat(list(step.rows))
                batch = material.batch([examples[row] for row in rows.tolist()])
                attributor.cache_gradients((number - 1) // steps_of_epoch, batch, rows, float(step.learning_rate))
    put_parameters(model.model, work.run.checkpoint(work.run.checkpoints[-1])[0])
    rates = {epoch: list(each) for epoch, each in attributor.learning_rates.items()}
    by_id = {example_id: row for row, example_id in enumerate(work.run.example_ids)}
    order = [by_id[one["example_id"]] for one in work.train]
    candidates, answer = [], Seconds()
    for factor in DVEMB_RATES:
        embedding, taken = Seconds(), Seconds()
        setting = "recorded learning rates, its default" if factor == 1 else f"learning rates times {factor:g}"
        try:
            with embedding.counted():
                scaled = {epoch: [factor * rate for rate in each] for epoch, each in rates.items()}
                attributor.cache(learning_rates=scaled, memory_saving=False)
        except ValueError as error:  # it finds that its embeddings have diverged
            remark(f"DVEmb: {setting}: {error}")
            continue
        with taken.counted():
            scores = attributor.attribute(material.queries(BATCH))
        if factor == 1:
            prepare.wall, prepare.processor = prepare.wall + embedding.wall, prepare.processor + embedding.processor
            answer = taken
        if not bool(scores.isfinite().all()):
            remark(f"DVEmb: {setting}: scores are not finite")
            continue
        candidates.append(Candidate(setting, scores.detach().float().cpu().T[:, order].contiguous(), factor == 1))
        remark(f"DVEmb: {setting} in {embedding.wall + taken.wall:.0f} s")
    kept = sum(one.numel() * one.element_size() for one in attributor.embeddings.values())
    return Scored(
        candidates,
        prepare,
        answer,
        bytes_an_example=kept / len(work.train),
        bytes_once=0,
        note=f"{len(layers)} linear layers at {DVEMB_SIDE} by {DVEMB_SIDE} coordinates; going through the recorded "
        f"steps again for it ({following.wall:.0f} s) is not counted",
    )


class _WithLoss(nn.Module):
    """The classifier as LoGra calls it: a batch's mapping in, an object with the batch's loss out."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, labels: Tensor, **inputs: Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=functional.cross_entropy(self.classifier(**inputs), labels, reduction="sum"))


def _logra(material: Material, folder: Path) -> Scored:
    from dattri.algorithm.logra import LoGraAttributor
    from dattri.task import AttributionTask

    model = _WithLoss(material.classifier())
    layers = [f"classifier.{name}" for name in model.classifier.trained_linear()]

    def loss(model: Any, data: Any, device: Any) -> Tensor:
        found: Tensor = model(**data).loss
        return found

    def named(loader: DataLoader[Any]) -> DataLoader[Any]:
        def collate(examples: Any) -> dict[str, Tensor]:
            return dict(zip(COLUMNS, material.batch(examples), strict=True))

        return DataLoader(loader.dataset, BATCH, shuffle=False, collate_fn=collate)

    train, queries = named(material.train(BATCH)), named(material.queries(BATCH))
    grid: list[tuple[str, float | None]] = [("its default damping", None)]
    candidates: list[Candidate] = []
    prepare, answer = Seconds(), Seconds()
    torch.manual_seed(0)
    attributor = LoGraAttributor(
        AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict()),
        layer_names=layers,
        proj_dim=LOGRA_DIMENSIONS,
        device=material.device.type,
        cache_dir=str(folder),
    )
    with prepare.counted():
        attributor.cache(train)
    mean = _mean_square(attributor)
    grid += [(f"damping {factor * mean:.2g}", factor * mean) for factor in LOGRA_RELATIVE]
    for number, (setting, damping) in enumerate(grid):
        if number:
            attributor.compute_preconditioners(damping)
            attributor.compute_ifvp()
        taken = Seconds()
        with taken.counted():
            scores = attributor.attribute(train, queries)
        if not number:
            answer = taken
        candidates.append(Candidate(setting, material.by_example(scores.detach().float().T.contiguous()), not number))
        remark(f"LoGra: {setting} in {taken.wall:.0f} s")
    return Scored(
        candidates,
        prepare,
        answer,
        bytes_an_example=2 * 4 * float(sum(attributor.layer_dims)),
        bytes_once=4 * float(sum(size * size for size in attributor.layer_dims)),
        note=f"{len(layers)} linear layers at {LOGRA_DIMENSIONS} coordinates",
    )


def _mean_square(attributor: Any) -> float:
    total, count = 0.0, 0
    for rows, _ in attributor.offload_manager.create_gradient_dataloader(data_type="gradients", batch_size=4):
        total, count = total + float(rows.double().pow(2).sum()), count + rows.numel()
    return total / count


def _ekfac_all(material: Material, folder: Path) -> Scored:
    model = material.classifier()
    return _ekfac(material, model, model.trained_linear(), "")


def _ekfac_head(material: Material, folder: Path) -> Scored:
    trained = [name for name in material.work.run.trainable if ".encoder." not in name]
    # As if the rest had been frozen: the package takes every trained weight apart for every example.
    model = Classifier(material.work.run.load_model(), trained).to(material.device)
    note = f"only the {len(trained) // 2} layers that see one vector a text: see EK-FAC"
    return _ekfac(material, model, model.trained_linear(), note)


def _ekfac(material: Material, model: Classifier, layers: list[str], note: str) -> Scored:
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.task import AttributionTask

    def logits(params: Any, data: Any) -> Tensor:
        # Gradients of one example come without a batch.
        single = data[0].dim() == 1
        found: Tensor = torch.func.functional_call(
            model, params, tuple(one.unsqueeze(0) if single else one for one in data[:-1])
        )
        return found

    def labels(data: Any) -> Tensor:
        found: Tensor = data[-1]
        return found.reshape(-1)

    def loss(params: Any, data: Any) -> Tensor:
        return functional.cross_entropy(logits(params, data), labels(data))

    def target(params: Any, data: Any) -> Tensor:
        return -margin(logits(params, data), labels(data)).sum()

    weights = model.state_dict()
    fisher = AttributionTask(loss_func=loss, model=model, checkpoints=weights)
    attributor = IFAttributorEKFAC(
        task=fisher, module_name=layers, damping=EKFAC_DAMPINGS[0], device=material.device.type
    )
    prepare, answer = Seconds(), Seconds()
    with prepare.counted():
        attributor.cache(material.train(BATCH))
    # All in one batch each: it takes the queries' gradients again for every batch of examples.
    train, queries = material.train(len(material.work.train)), material.queries(len(material.work.queries))
    # The Fisher matrix is taken of the target, where one is given; it is meant to be the loss's.
    attributor.task = AttributionTask(loss_func=loss, model=model, checkpoints=weights, target_func=target)
    candidates = []
    for number, damping in enumerate(EKFAC_DAMPINGS):
        attributor.damping = damping
        taken = Seconds()
        with taken.counted():
            scores = attributor.attribute(train, queries)
        if not number:
            answer = taken
        if bool(scores.isfinite().all()):
            influences = material.by_example(scores.detach().float().T.contiguous())
            setting = f"damping {damping:g}" + (", its default" if not number else "")
            candidates.append(Candidate(setting, influences, default=not number))
    factors = [*attributor.cached_lambdas.values(), *(one for pair in attributor.cached_q.values() for one in pair)]
    once = sum(one.numel() * one.element_size() for one in factors)
    return Scored(candidates, prepare, answer, bytes_an_example=0, bytes_once=once, note=note)
