"""Promise: of a batch of texts of different lengths, each has the gradients that plain autograd gives it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.gradients import track
from influence_engine.models.loading import add_lora
from influence_engine.models.trainable import choose_trainable

TEXTS = st.lists(st.sampled_from(["bad", "good", "the", "film", "plot"]), min_size=1, max_size=8)

Make = Callable[..., nn.Module]


def gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=24, n_embd=8, n_layer=2, n_head=2, n_positions=16, pad_token_id=0, bos_token_id=0, eos_token_id=0
    )
    return GPT2ForSequenceClassification(config)


def llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=24, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    return LlamaForSequenceClassification(config)


def adapters(make_model: Make) -> nn.Module:
    model = add_lora(make_model(), r=2, alpha=4.0)
    choose_trainable(model, "lora")
    return model


def upper_layer(make_model: Make) -> nn.Module:
    model = make_model()
    choose_trainable(model, 1)
    return model


def biases(make_model: Make) -> nn.Module:
    model = make_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(".bias"))
    return model


MODELS: dict[str, Callable[[Make], nn.Module]] = {
    "all of BERT": lambda make_model: make_model(),
    "its upper layer": upper_layer,
    "its biases": biases,
    "adapters on it": adapters,
    "all of GPT-2": lambda _: gpt2(),
    "all of Llama": lambda _: llama(),
}


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=6, deadline=None)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(["bad", "good", "the", "film", "plot"]), min_size=1, max_size=8), max_size=4
    ),
    seed=st.integers(0, 9999),
)
def test_gradients_of_padded_texts_are_those_of_each_alone(
    task: Any, make_model: Make, kind: str, texts: list[list[str]], seed: int
) -> None:
    texts = [["film"], *texts]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[kind](make_model).double().eval()
        for parameter in model.parameters():  # an adapter's second factor is zero at first, as are biases
            nn.init.normal_(parameter, std=0.3)
    examples = [{"text": " ".join(words), "label": task.labels[number % 2]} for number, words in enumerate(texts)]
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    tracked = track(model)

    found = GradientPasses(model, task, tracked, batch_tokens=None, draws=1, seed=0).loss_gradients(examples)

    assert found.keys() == {layer.name for layer in tracked.layers}
    for number, example in enumerate(examples):
        batch = task.collate([example])
        loss = task.loss(task.outputs(model, batch), batch).sum()
        wanted = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
        for layer in tracked.layers:
            # Llama's normalisations compute in single precision.
            near = 1e-4 if kind == "all of Llama" else 1e-9
            torch.testing.assert_close(found[layer.name].dense()[number], layer.matrix(wanted), rtol=near, atol=near)
