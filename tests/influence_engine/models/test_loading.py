"""Models are loaded from safetensors only, saved so that they come back, and frozen where they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertModel

from influence_engine.errors import ModelError, SettingsError
from influence_engine.models.loading import (
    add_lora,
    base_head,
    load_base,
    load_into,
    load_model,
    load_processor,
    model_digest,
    save_model,
)
from influence_engine.models.trainable import choose_trainable
from influence_engine.tasks.capabilities import classification_head
from tests.small_models import LABELS, small_bert, word_tokenizer

HEAD = classification_head("AutoModelForSequenceClassification", LABELS)


def bert(labels: int = 2) -> Any:
    """Each time with other weights."""
    return small_bert(seed=None, num_labels=labels)


@pytest.fixture
def headless(tmp_path: Path) -> Path:
    small_bert(BertModel, seed=None).save_pretrained(tmp_path / "headless")
    return tmp_path / "headless"


def test_a_fresh_head_depends_on_the_seed_alone_and_the_rest_on_the_checkpoint(headless: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)

    first, again, other = (load_base(headless, HEAD, seed=seed) for seed in (0, 0, 5))

    assert torch.equal(torch.rand(1), expected)
    assert model_digest(first) == model_digest(again) != model_digest(other)
    assert torch.equal(first.bert.pooler.dense.weight, other.bert.pooler.dense.weight)
    assert first.config.id2label == {0: "negative", 1: "positive"}
    assert first.config._attn_implementation == "eager"
    assert not first.training
    assert {parameter.dtype for parameter in first.parameters()} == {torch.float32}


def test_a_base_model_says_whether_its_head_is_its_own_also_after_fine_tuning_and_saving(
    headless: Path, tmp_path: Path
) -> None:
    bert().save_pretrained(tmp_path / "whole")

    fresh, own = load_base(headless, HEAD), load_base(tmp_path / "whole", HEAD)
    save_model(fresh, tmp_path / "saved")

    assert (base_head(fresh), base_head(own), base_head(nn.Linear(2, 2))) == ("random", "own", None)
    assert base_head(load_model(tmp_path / "saved")) == "random"
    assert base_head(load_base(tmp_path / "saved", HEAD)) == "own", "it is another training's base now"
    assert base_head(add_lora(fresh, r=2, alpha=4)) == "random"


def test_a_head_that_is_there_is_kept(tmp_path: Path) -> None:
    model = bert()
    model.save_pretrained(tmp_path / "headed")

    assert model_digest(load_base(tmp_path / "headed", HEAD, seed=9)) == model_digest(model)


def test_a_head_for_another_number_of_labels_is_refused(tmp_path: Path) -> None:
    bert(labels=3).save_pretrained(tmp_path / "three")

    with pytest.raises(ModelError, match="head that does not fit 2 outputs"):
        load_base(tmp_path / "three", HEAD)
    with pytest.raises(ModelError, match="has 3 outputs, the task has 2"):
        load_model(tmp_path / "three", HEAD)


def test_loading_says_nothing(headless: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_base(headless, HEAD)

    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_what_is_not_there_or_not_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("no model")
    for load in (load_model, lambda folder: load_base(folder, HEAD), load_processor):
        with pytest.raises(ModelError, match="there is no model folder"):
            load(tmp_path / "missing")
        with pytest.raises(ModelError, match="there is no model folder"):
            load("./missing/model")
        with pytest.raises(ModelError, match="is empty"):
            load(tmp_path / "empty")
        with pytest.raises(ModelError, match=r"no config\.json"):
            load(tmp_path / "other")


def test_weights_in_any_other_format_are_not_read(headless: Path) -> None:
    torch.save(small_bert(BertModel).state_dict(), headless / "pytorch_model.bin")
    (headless / "model.safetensors").unlink()

    for load in (load_model, lambda folder: load_base(folder, HEAD)):
        with pytest.raises(ModelError, match=r"no \.safetensors weights; other formats are not read"):
            load(headless)


def test_a_damaged_file_is_a_model_error(headless: Path) -> None:
    (headless / "model.safetensors").write_bytes(b"\xff" * 50)

    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(headless, HEAD)


def test_code_that_comes_with_a_model_is_never_run(headless: Path, tmp_path: Path) -> None:
    config = json.loads((headless / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "evil.Config",
        "AutoModel": "evil.Model",
        "AutoModelForSequenceClassification": "evil.Model",
    }
    (headless / "config.json").write_text(json.dumps(config))
    (headless / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")

    load_base(headless, HEAD)

    assert not (tmp_path / "ran").exists()


def test_a_base_model_is_not_taken_for_a_fine_tuned_one(headless: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="without a head"):
        load_model(headless)

    model = bert()
    model.save_pretrained(tmp_path / "cut")
    state = {name: value for name, value in model.state_dict().items() if "classifier" not in name}
    save_file(state, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 2 weights of BertForSequenceClassification \(classifier\.bias"):
        load_model(tmp_path / "cut")


def test_an_architecture_that_does_not_exist_is_named(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMindReading"]}))

    with pytest.raises(ModelError, match="'BertForMindReading', which transformers does not have"):
        load_model(tmp_path / "m")


def test_a_whole_model_comes_back_with_its_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = bert(), word_tokenizer()
    save_model(model, tmp_path / "saved", processor=tokenizer)

    assert model_digest(load_model(tmp_path / "saved", HEAD)) == model_digest(model)
    assert load_processor(tmp_path / "saved")("a warm film")["input_ids"] == tokenizer("a warm film")["input_ids"]


def test_an_adapter_comes_back_on_its_base(tmp_path: Path) -> None:
    base = bert()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    adapted = add_lora(base, r=2, alpha=4, seed=1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    save_model(adapted, tmp_path / "saved")

    loaded = load_model(tmp_path / "saved", HEAD)

    assert model_digest(loaded) == model_digest(adapted)
    assert choose_trainable(loaded, "lora") == choose_trainable(adapted, "lora")
    under = load_model(tmp_path / "saved" / "base")
    assert all(torch.equal(value, before[name]) for name, value in under.state_dict().items())


def test_an_adapter_saved_elsewhere_finds_its_base_or_says_where_to_put_it(headless: Path, tmp_path: Path) -> None:
    adapted: Any = add_lora(load_base(headless, HEAD), r=2, alpha=4)
    adapted.save_pretrained(tmp_path / "adapter")

    assert model_digest(load_model(tmp_path / "adapter", HEAD)) == model_digest(adapted)
    with pytest.raises(ModelError, match=r"adapter without its base model; put that into .*base"):
        load_model(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load_model(tmp_path / "adapter", HEAD)


def test_an_adapter_adds_nothing_at_first_and_depends_on_its_seed() -> None:
    model, inputs = bert(), torch.tensor([[1, 2, 3]])
    expected = model(inputs).logits
    state = model.state_dict()

    def adapted(seed: int) -> nn.Module:
        fresh = bert()
        fresh.load_state_dict(state)
        return add_lora(fresh, r=2, alpha=4, seed=seed)

    torch.testing.assert_close(adapted(1)(inputs).logits, expected)
    assert model_digest(adapted(1)) == model_digest(adapted(1)) != model_digest(adapted(2))


def test_a_target_for_adapters_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SettingsError, match="no adapter can be put there") as caught:
        add_lora(bert(), r=2, alpha=4, target_modules=["nowhere"])

    assert caught.value.field == "lora.target_modules"


def test_an_architecture_unknown_to_peft_gets_adapters_in_its_linear_layers() -> None:
    adapted = add_lora(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), r=2, alpha=4)

    assert len([name for name in choose_trainable(adapted, "lora") if "lora_A" in name]) >= 1


def test_a_module_of_ones_own_is_filled_again_or_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    save_model(model, tmp_path)

    filled = load_into(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), tmp_path)

    assert model_digest(filled) == model_digest(model)
    assert not filled.training
    with pytest.raises(ModelError, match="does not fit Linear"):
        load_into(nn.Linear(5, 5), tmp_path)
    with pytest.raises(ModelError, match=r"weights\.safetensors is missing"):
        load_into(model, tmp_path / "nowhere")


def test_the_digest_of_a_model_in_bfloat16_is_that_of_what_is_loaded(tmp_path: Path) -> None:
    model = bert().to(torch.bfloat16)
    save_model(model, tmp_path)

    assert model_digest(load_model(tmp_path)) == model_digest(model)
