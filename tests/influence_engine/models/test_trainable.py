"""Which parameters are trained: all, adapters, upper layers or by name; frozen normalisation stays frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from influence_engine.errors import ModelError, SettingsError
from influence_engine.models.trainable import block_list, choose_trainable, freeze_unchanged, set_trainable
from tests.influence_engine.convolutional import ConvolutionalNetwork
from tests.small_models import small_bert


def bert() -> Any:
    return small_bert(num_hidden_layers=3)


SMALL: dict[str, Any] = {"num_labels": 2}
ARCHITECTURES = {
    "bert": (bert, "bert.encoder.layer", ("bert.pooler.", "classifier.")),
    "distilbert": (
        lambda: DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=20, dim=8, n_layers=3, n_heads=2, hidden_dim=12, **SMALL)
        ),
        "distilbert.transformer.layer",
        ("pre_classifier.", "classifier."),
    ),
    "gpt2": (
        lambda: GPT2ForSequenceClassification(GPT2Config(vocab_size=20, n_embd=8, n_layer=3, n_head=2, **SMALL)),
        "transformer.h",
        ("transformer.ln_f.", "score."),
    ),
    "llama": (
        lambda: LlamaForSequenceClassification(
            LlamaConfig(
                vocab_size=20,
                hidden_size=8,
                intermediate_size=12,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=2,
                **SMALL,
            )
        ),
        "model.layers",
        ("model.norm.", "score."),
    ),
    "vit": (
        lambda: ViTForImageClassification(
            ViTConfig(
                image_size=8,
                patch_size=4,
                hidden_size=8,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=12,
                **SMALL,
            )
        ),
        None,
        ("vit.layernorm.", "classifier."),
    ),
    "t5": (
        lambda: T5ForSequenceClassification(
            T5Config(vocab_size=20, d_model=8, d_ff=12, num_layers=3, num_heads=2, d_kv=4, **SMALL)
        ),
        "transformer.decoder.block",
        ("transformer.decoder.final_layer_norm.", "classification_head."),
    ),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_upper_layers_are_the_last_blocks_and_what_follows_them_in_any_architecture(architecture: str) -> None:
    make, where, after = ARCHITECTURES[architecture]
    model = make()

    names = choose_trainable(model, 2)

    found = block_list(model)
    assert found is not None
    assert found[1] == 3
    assert where in (None, found[0])
    blocks = {name.removeprefix(found[0] + ".").split(".")[0] for name in names if name.startswith(found[0] + ".")}
    assert blocks == {"1", "2"}
    rest = [name for name in names if not name.startswith(found[0])]
    assert rest
    assert all(name.startswith(after) for name in rest)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(names)


def test_all_weights_can_be_trained_again_after_a_choice() -> None:
    model = bert()
    choose_trainable(model, 1)

    assert choose_trainable(model, "all") == [name for name, _ in model.named_parameters()]
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        ("upper", "'all', 'lora', or a number"),
        (0, "'all', 'lora', or a number"),
        (True, "'all', 'lora', or a number"),
        (4, "the model has 3 layers"),
        ("lora", "the model has no adapters"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused(trainable: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        choose_trainable(bert(), trainable)

    assert caught.value.field == "trainable"


def test_a_model_without_layers_has_no_upper_ones() -> None:
    with pytest.raises(SettingsError, match="no list of layers"):
        choose_trainable(nn.Linear(2, 2), 1)


def test_a_name_that_is_no_parameter_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no parameter .classifier\.bais."):
        set_trainable(bert(), ["classifier.bais"])


def test_what_the_base_model_left_alone_was_not_trained() -> None:
    base, model = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)) for _ in range(2))
    model.load_state_dict(base.state_dict())
    with torch.no_grad():
        model[1].weight[0, 0] += 1e-6
    freeze_unchanged(model, base)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["1.weight"]


def test_parameters_that_the_base_model_lacks_or_has_in_another_shape_were_trained() -> None:
    base, model = nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    freeze_unchanged(model, base)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["classifier"], {"classifier.weight", "classifier.bias"}),
        (["classifier.bias"], {"classifier.bias"}),
        (["bert.encoder.layer.2.output", "classifier"], None),
        (["bert.encoder.layer.2.output.*", "classifier*"], None),
        (["*.2.output", "classifier.*"], None),
    ],
)
def test_names_and_patterns_choose_parameters_and_whole_modules(names: list[str], expected: set[str] | None) -> None:
    model = bert()
    wanted = expected or {
        name for name, _ in model.named_parameters() if name.startswith(("bert.encoder.layer.2.output.", "classifier."))
    }

    chosen = choose_trainable(model, names)

    assert set(chosen) == wanted
    assert chosen == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clasifier", "'clasifier'.*no such parameter or module; the nearest is 'classifier'"),
        ("encoder.layer.2.atention.*", "the nearest is 'bert.encoder.layer.2.attention'"),
        ("pooller", "the nearest is 'bert.pooler'"),
        ("bert.encoder.layer.7", "the nearest is 'bert.encoder.layer"),
        ("nowhere", "its outermost modules are bert, classifier"),
    ],
)
def test_a_name_without_a_match_is_refused_with_the_nearest_one(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        choose_trainable(bert(), ["classifier", name])

    assert caught.value.field == "trainable"


def normalisation(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters() if "norm" in name}


@pytest.mark.parametrize("trainable", ["all", 1, 3])
def test_normalisation_that_the_model_has_frozen_stays_frozen(trainable: Any) -> None:
    frozen, free = ConvolutionalNetwork(), ConvolutionalNetwork()
    frozen.freeze_normalisation()

    chosen = choose_trainable(frozen, trainable)

    assert chosen
    assert not normalisation(frozen) & set(chosen)
    assert set(choose_trainable(free, trainable)) - normalisation(free) == set(chosen)
    assert normalisation(free) & set(choose_trainable(free, trainable))


def test_frozen_normalisation_is_trained_where_it_is_named() -> None:
    model = ConvolutionalNetwork()
    model.freeze_normalisation()

    assert choose_trainable(model, ["norm", "head"]) == ["norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_normalisation_is_not_singled_out_in_a_model_that_is_frozen_altogether() -> None:
    model = ConvolutionalNetwork().requires_grad_(False)

    assert choose_trainable(model, "all") == [name for name, _ in model.named_parameters()]
