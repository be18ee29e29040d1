"""Loading and saving models, adapters and processors.

Weights are read from safetensors only and no code that comes with a model is ever run. Attention is the eager kind,
which can be differentiated twice, and weights are 32-bit floats.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch import nn

from influence_engine.digests import weights_digest
from influence_engine.errors import ModelError, SettingsError
from influence_engine.models.adapter_base import (
    ADAPTER_BASE,
    as_loaded,
    base_state,
    is_adapter,
    refer_to_base,
    shared_base,
)
from influence_engine.tasks import PROCESSORS, Head

ADAPTER_CONFIG = "adapter_config.json"
BASE_HEAD = "bento_audit_base_head"
"""Where a model's configuration says whether the base model's head was its ``own`` or a fresh, ``random`` one."""

PLAIN_WEIGHTS = "weights.safetensors"
"""Weights of a module that does not come from ``transformers``."""


def load_base(
    path_or_hub_id: str | os.PathLike[str], head: Head, *, revision: str | None = None, seed: int = 0
) -> nn.Module:
    """A base model with a task's head, which is fresh (drawn with ``seed``) where the checkpoint has none.

    Args:
        path_or_hub_id: Folder of a saved model, or its id on the hub.
        head: Which class of ``transformers`` loads it, and the shape of the head: ``tasks.head_of(task)``.
        revision: Branch, tag or commit on the hub.
        seed: Fixes the fresh head; the caller's random state is left alone.

    Raises:
        ModelError: nothing is there, it is not safetensors, or it has a head of another size.
        SettingsError: ``transformers`` has no such class.
    """
    import transformers

    own_architectures()
    source, kind = _source(path_or_hub_id), getattr(transformers, head.auto_class, None)
    if kind is None:
        raise SettingsError(f"transformers has no class {head.auto_class!r} to load a model with", field="task")
    settings = {**head.settings, **_safely(), "output_loading_info": True}
    with torch.random.fork_rng(), _loading(source, head):
        torch.manual_seed(seed)
        model, report = kind.from_pretrained(source, revision=revision or "main", **settings)
    # In the configuration, so that it is saved, copied and wrapped with the model, through fine-tuning, too.
    setattr(model.config, BASE_HEAD, "random" if report["missing_keys"] else "own")
    base: nn.Module = model
    return base.eval()


def base_head(base: nn.Module) -> Literal["own", "random"] | None:
    """Whether a base model came with all its weights, or got a fresh head, so that its answers are those of chance.

    Args:
        base: What ``load_base`` returned, saved and loaded since or not.

    Returns:
        None where that is not known.
    """
    found = getattr(getattr(base, "config", None), BASE_HEAD, None)
    return found if found in ("own", "random") else None


def load_model(folder: str | os.PathLike[str], head: Head | None = None) -> nn.Module:
    """A fine-tuned model (or a LoRA adapter on its base), in evaluation mode on the CPU.

    Args:
        folder: What ``save_model`` or ``save_pretrained`` wrote, or an id on the hub.
        head: Checked against the model's own; an adapter that was saved without its base needs it to find that.

    Raises:
        ModelError: nothing is there, it is not safetensors, or some weights (such as the head) are not in it.
    """
    source = _source(folder)
    if (Path(source) / ADAPTER_CONFIG).is_file():
        model = _load_adapter(Path(source), head)
    else:
        model = _load_whole(source, head)
    if head is not None and head.outputs is not None:
        found = getattr(getattr(model, "config", None), "num_labels", head.outputs)
        if found != head.outputs:
            raise ModelError(f"{source} has {found} outputs, the task has {head.outputs}{_named(head)}", field="task")
    return model.eval()


def import_classes(folder: str | os.PathLike[str]) -> None:
    """Imports the classes that ``load_model`` will need for a folder, which takes seconds and reads no weights.

    Nothing is checked: what is wrong with the folder, ``load_model`` says.
    """
    import transformers

    folder = Path(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        import peft  # noqa: F401

        folder = folder / ADAPTER_BASE
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = config["architectures"][0]
        own_architectures().get(architecture) or getattr(transformers, architecture, None)


def checkpoint_labels(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """What a saved classifier calls its outputs, in their order; none where it has no names of its own."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        names = tuple(str(config["id2label"][number]) for number in sorted(config["id2label"], key=int))
    except (OSError, ValueError, LookupError, TypeError):
        return ()
    return () if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names


def load_into(model: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Loads the weights that ``save_model`` wrote into a freshly built module that is not from ``transformers``.

    Raises:
        ModelError: the weights are missing or do not fit.
    """
    path = Path(folder) / PLAIN_WEIGHTS
    if not path.is_file():
        raise ModelError(f"{path} is missing; load this model without passing a module", field=str(path))
    try:
        load_weights(model, path)
    except (RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path} does not fit {type(model).__name__}: {error}", field=str(path)) from error
    return model.eval()


def load_processor(
    path_or_hub_id: str | os.PathLike[str], kind: str = "AutoTokenizer", *, revision: str | None = None
) -> Any:
    """What was saved with a model to turn raw inputs into tensors.

    Args:
        path_or_hub_id: Folder of the model, or its id on the hub.
        kind: The class that loads it: one of ``tasks.PROCESSORS``, or of ``transformers``, such as ``AutoTokenizer``.
        revision: Branch, tag or commit on the hub.

    Raises:
        ModelError: there is none.
    """
    import transformers

    source = _source(path_or_hub_id)
    with _loading(source, None):
        loader = PROCESSORS.get(kind) or getattr(transformers, kind)
        return loader.from_pretrained(source, revision=revision or "main", trust_remote_code=False)


def save_model(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    processor: Any = None,
    base_of: str | os.PathLike[str] | None = None,
) -> None:
    """Writes what ``load_model`` reads: a whole model, or an adapter and, in ``base``, what it sits on.

    A module that is not from ``transformers`` is written as bare weights, for ``load_into``.

    Args:
        model: The model.
        folder: Made if missing.
        processor: Saved with it.
        base_of: Folder beside this one of a saved adapter on the same base (``adapter_base_digest``), which is then
            not saved a second time.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    saving: Any = model
    with _quiet():
        if is_adapter(model):
            saving.save_pretrained(str(folder), save_embedding_layers=False)
            if base_of is not None:
                refer_to_base(model, folder, Path(base_of))
            else:
                saving.get_base_model().save_pretrained(folder / ADAPTER_BASE, state_dict=base_state(model))
        elif hasattr(model, "save_pretrained"):
            saving.save_pretrained(folder)
        else:
            save_weights(model, str(folder / PLAIN_WEIGHTS))
        if hasattr(processor, "save_pretrained"):
            processor.save_pretrained(folder)


def add_lora(
    model: nn.Module, *, r: int, alpha: float, target_modules: Sequence[str] | None = None, seed: int = 0
) -> nn.Module:
    """Puts low-rank adapters (Hu et al. 2022) into ``model``, which is changed, and returns it wrapped by PEFT.

    The head of a classifier is trained along with the adapters.

    Args:
        model: The base model.
        r: Rank.
        alpha: Scale; an adapter adds ``alpha / r * B A x`` (Hu et al. 2022, section 4.1), with ``B`` zero at first.
        target_modules: Names of the linear modules; ``None`` is PEFT's choice, or all linear layers where it has none.
        seed: Fixes ``A``; the caller's random state is left alone.

    Raises:
        SettingsError: a target does not exist or cannot have an adapter.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if target_modules is not None:
        targets: Any = list(target_modules)
    else:
        targets = None if model_type in KNOWN else "all-linear"
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, task_type=_peft_type(model), lora_dropout=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            adapted: nn.Module = get_peft_model(model, config)
        except ValueError as error:
            raise SettingsError(f"no adapter can be put there: {error}", field="lora.target_modules") from error
    return adapted.eval()


_PEFT_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForCausalLM": "CAUSAL_LM",
}
"""What PEFT calls the tasks of models whose class name ends so; it trains the fresh head of the first two, too."""


def _peft_type(model: nn.Module) -> str | None:
    name = type(model).__name__
    return next((kind for ending, kind in _PEFT_TYPES.items() if name.endswith(ending)), None)


def model_digest(model: nn.Module) -> str:
    """Digest of all weights and persistent buffers, as the 32-bit floats in which ``load_model`` reads them."""
    return weights_digest(as_loaded(model.state_dict()))


@functools.cache
def own_architectures() -> Mapping[str, Any]:
    """Classes of models that ``transformers`` lacks, by name; from the first call on its ``Auto...`` know them."""
    from transformers import AutoConfig, AutoModelForImageClassification

    from influence_engine.models.efficientnet_lite import (
        EfficientNetLiteConfig,
        EfficientNetLiteForImageClassification,
        EfficientNetLiteModel,
    )

    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModelForImageClassification.register(
        EfficientNetLiteConfig, EfficientNetLiteForImageClassification, exist_ok=True
    )
    return {kind.__name__: kind for kind in (EfficientNetLiteModel, EfficientNetLiteForImageClassification)}


def _load_whole(source: str, head: Head | None) -> nn.Module:
    import transformers

    own = own_architectures()
    with _loading(source, head):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    architecture = (config.architectures or ["none"])[0]
    kind = own.get(architecture) or getattr(transformers, architecture, None)
    if kind is None:
        raise ModelError(f"{source} names the architecture {architecture!r}, which transformers does not have")
    with _loading(source, head):
        model, report = kind.from_pretrained(source, config=config, output_loading_info=True, **_safely())
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{source} lacks {len(missing)} weights of {architecture} ({missing[0]} ...); is it a base model that was "
            "not fine-tuned?"
        )
    loaded: nn.Module = model
    if getattr(loaded, "base_model", None) is loaded:
        raise ModelError(f"{source} is a base model ({architecture}) without a head; a fine-tuned model is wanted")
    return loaded


def _load_adapter(folder: Path, head: Head | None) -> nn.Module:
    from peft import PeftConfig, PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} has no adapter_model.safetensors; other formats are not read")
    with _loading(str(folder), head):
        named = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if (folder / ADAPTER_BASE).is_dir():
        base = _load_whole(str(folder / ADAPTER_BASE), head)
    elif (shared := shared_base(folder)) is not None:
        base = _load_whole(str(shared.folder), head)
        shared.check(model_digest(base))
    elif named and head is not None:
        base = load_base(named, head)
    else:
        raise ModelError(f"{folder} is an adapter without its base model; put that into {folder / ADAPTER_BASE}")
    with _loading(str(folder), head):
        adapted: nn.Module = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    return adapted


def _safely() -> dict[str, Any]:
    return {
        "attn_implementation": "eager",
        "dtype": torch.float32,
        "use_safetensors": True,
        "trust_remote_code": False,
    }


def _source(path_or_hub_id: str | os.PathLike[str]) -> str:
    text = os.fspath(path_or_hub_id)
    path = Path(text)
    if path.is_dir():
        if not any(path.iterdir()):
            raise ModelError(f"{path} is empty; a model folder holds config.json and model.safetensors", field=text)
        return text
    if not isinstance(path_or_hub_id, str) or path.is_absolute() or text.startswith(".") or text.count("/") > 1:
        raise ModelError(f"there is no model folder {path}", field=text)
    return text


@contextlib.contextmanager
def _loading(source: str, head: Head | None) -> Iterator[None]:
    with _quiet():
        try:
            yield
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ModelError(_loading_message(source, head, error), field=source) from error


def _loading_message(source: str, head: Head | None, error: Exception) -> str:
    folder = Path(source)
    if not folder.is_dir():
        return f"{source!r} is neither a folder nor a model that the hub gives out now: {_first_line(error)}"
    if not (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG).is_file():
        return f"{folder} is no model folder: it has no config.json"
    if not any(folder.glob("*.safetensors")):
        return f"{folder} has no .safetensors weights; other formats are not read, convert them with save_pretrained"
    if head is not None and head.outputs is not None and "ignore_mismatched_sizes" in str(error):
        return f"{folder} has a head that does not fit {head.outputs} outputs{_named(head)}"
    return f"{folder} cannot be loaded: {_first_line(error)}"


def _named(head: Head) -> str:
    names = head.settings.get("id2label")
    return "" if names is None else f": {list(names.values())}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the progress bars of ``transformers`` and its warning that a head is fresh, which is intended here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
