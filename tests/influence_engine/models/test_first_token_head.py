"""Promise: leaving out what a classifier's head does not read changes no output, loss or gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from influence_engine.models.first_token_head import first_position_only, reads_first_position
from influence_engine.models.frozen_prefix import FrozenPrefix
from influence_engine.models.loading import add_lora
from tests.small_models import SIZES

KINDS: dict[str, tuple[type, type]] = {
    "bert": (BertConfig, BertForSequenceClassification),
    "roberta": (RobertaConfig, RobertaForSequenceClassification),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaForSequenceClassification),
    "camembert": (CamembertConfig, CamembertForSequenceClassification),
    "electra": (ElectraConfig, ElectraForSequenceClassification),
}
OTHERS: dict[str, tuple[type, type]] = {
    "every position": (BertConfig, BertForTokenClassification),
    "another layout": (DistilBertConfig, DistilBertForSequenceClassification),
}


def made(kinds: tuple[type, type], attention: str = "eager", **more: Any) -> nn.Module:
    torch.manual_seed(0)
    config, model = kinds
    settings = config(**SIZES, attn_implementation=attention, **more)
    built: nn.Module = model(settings).eval().double()
    return built


@pytest.fixture
def batch() -> dict[str, Tensor]:
    ids = torch.randint(3, 24, (4, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:], mask[2, 3:] = 0, 0
    ids[mask == 0] = 1
    return {"input_ids": ids, "attention_mask": mask}


def differentiated(model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    logits = model(**batch).logits
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(logits.logsumexp(-1).sum(), wanted, allow_unused=True, materialize_grads=True)
    return [logits.detach(), *found]


def work_of_last_layer(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """Positions that the last feed-forward layer ran for."""
    seen: list[int] = []
    (last,) = (m for n, m in model.named_modules() if n.endswith("layer.1.intermediate.dense"))
    with last.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1])):
        model(**batch)
    return seen[0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_the_same(kind: str, attention: str, batch: dict[str, Tensor]) -> None:
    model = made(KINDS[kind], attention)
    whole = differentiated(model, batch)

    with first_position_only(model):
        less = differentiated(model, batch)
        assert work_of_last_layer(model, batch) == 1

    assert reads_first_position(model)
    for one, other in zip(whole, less, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert work_of_last_layer(model, batch) == 9  # as before


def test_with_adapters_too(batch: dict[str, Tensor]) -> None:
    model = add_lora(made(KINDS["bert"]).float(), r=2, alpha=4, target_modules=None, seed=0).double()
    whole = differentiated(model, batch)
    with first_position_only(model):
        less = differentiated(model, batch)
    for one, other in zip(whole, less, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert len(whole) > 3


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_that_reads_more_is_left_as_it_is(kind: str, batch: dict[str, Tensor]) -> None:
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24} if kind == "another layout" else {}
    model = made(OTHERS[kind], **sizes)
    whole = differentiated(model, batch)
    with first_position_only(model):
        less = differentiated(model, batch)

    assert not reads_first_position(model)
    assert all(torch.equal(one, other) for one, other in zip(whole, less, strict=True))


def test_who_asks_for_hidden_states_or_uses_the_encoder_gets_every_position(batch: dict[str, Tensor]) -> None:
    model: Any = made(KINDS["bert"])
    with first_position_only(model):
        asked = model(**batch, output_hidden_states=True)
        encoded = model.bert(**batch).last_hidden_state

    assert asked.hidden_states[-1].shape[1] == 9
    assert encoded.shape[1] == 9
    assert torch.equal(asked.hidden_states[-1], encoded)


def test_a_class_of_ones_own_with_the_same_name_is_left_as_it_is(batch: dict[str, Tensor]) -> None:
    class Mean(BertForSequenceClassification):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return self.classifier(self.bert(input_ids, attention_mask=attention_mask).last_hidden_state.mean(1))

    Mean.__name__ = "BertForSequenceClassification"
    model = made((BertConfig, Mean))
    whole = model(**batch)
    with first_position_only(model):
        assert torch.equal(model(**batch), whole)
    assert not reads_first_position(model)


def test_a_last_attention_that_returns_its_cached_output_is_left_alone(batch: dict[str, Tensor]) -> None:
    model = made(KINDS["bert"])
    trained = [name for name, _ in model.named_parameters() if "layer.1.output" in name or "classifier" in name]
    prefix = FrozenPrefix(model, trained)
    whole = model(**batch).logits
    with first_position_only(model):
        with prefix.caching() as cached:
            model(**batch)
        for _ in range(2):
            with prefix.reusing(cached):
                torch.testing.assert_close(model(**batch).logits, whole, rtol=1e-10, atol=1e-12)
    assert any(name.endswith("layer.1.attention") for name in cached)
    torch.testing.assert_close(model(**batch).logits, whole, rtol=0, atol=0)


def test_a_forward_that_was_replaced_before_is_there_again_afterwards(batch: dict[str, Tensor]) -> None:
    model: Any = made(KINDS["bert"])
    own = model.forward
    calls: list[int] = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    model.forward = wrapped
    with first_position_only(model):
        model(**batch)
    model(**batch)
    assert len(calls) == 2


def test_after_an_error_the_model_is_as_it_was(batch: dict[str, Tensor]) -> None:
    model: Any = made(KINDS["bert"])
    with pytest.raises(IndexError), first_position_only(model):
        model(input_ids=torch.full((1, 4), 99))
    assert work_of_last_layer(model, batch) == 9
    assert "forward" not in vars(model)
