"""The model that an adapter sits on, saved once where several saved adapters share it.

A saved adapter has its base in ``base/``, or a ``base.json`` that refers to that of another adapter by digest. The
reference is relative and stays below the folder that both lie in, so that the whole can be copied and moved.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from influence_engine.digests import weights_digest
from influence_engine.errors import DigestMismatchError, ModelError, RecordError
from influence_engine.files import read_json, write_json

ADAPTER_BASE = "base"
"""Folder, within a saved adapter's, of the model that the adapter sits on."""

REFERENCE = "base.json"


@dataclass(frozen=True)
class SharedBase:
    """A base that lies with another adapter.

    Attributes:
        folder: Where.
        digest: Of its weights, as ``model_digest`` gives it.
        reference: The file that says so.
    """

    folder: Path
    digest: str
    reference: Path

    def check(self, found: str) -> None:
        """Compares with the digest of what was loaded from there.

        Raises:
            DigestMismatchError: it is another model.
        """
        if found != self.digest:
            raise DigestMismatchError(
                f"{self.folder} has weights with digest {found}, {self.reference} says {self.digest}",
                field=str(self.folder),
            )


def is_adapter(model: nn.Module) -> bool:
    """Whether PEFT has put adapters into it."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def base_state(model: Any) -> dict[str, Tensor]:
    """The state of the model that an adapter sits on, under the names that it has without the adapter."""
    # PEFT keeps a wrapped layer's own weights in `base_layer`, and a fully trained module's first ones in
    # `original_module`.
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): tensor
        for name, tensor in model.get_base_model().state_dict().items()
        if "lora_" not in name and ".modules_to_save." not in name
    }


def as_loaded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state in the 32-bit floats in which models are loaded."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def adapter_base_digest(model: nn.Module) -> str | None:
    """``model_digest`` of what an adapter sits on; None of a model without one."""
    return weights_digest(as_loaded(base_state(model))) if is_adapter(model) else None


def refer_to_base(model: nn.Module, folder: Path, other: Path) -> None:
    """Makes the adapter ``model``, saved in ``folder``, share the base that lies with the one in ``other``."""
    path = Path(os.path.relpath(other / ADAPTER_BASE, folder)).as_posix()
    write_json(folder / REFERENCE, {"path": path, "digest": adapter_base_digest(model)})


def shared_base(folder: Path) -> SharedBase | None:
    """The base that the adapter in ``folder`` refers to; None where it refers to none.

    Raises:
        ModelError: the reference cannot be read, leads out of the folder that both lie in, or to nothing.
    """
    path = folder / REFERENCE
    if not path.is_file():
        return None
    try:
        about = read_json(path)
        to, digest = (folder / str(about["path"])).resolve(), str(about["digest"])
    except (RecordError, TypeError, KeyError) as error:
        raise ModelError(f"{path} does not say where the adapter's base is: {error}", field=str(path)) from error
    if not to.is_relative_to(folder.resolve().parent) or not to.is_dir():
        raise ModelError(f"{path} refers to {about['path']}, where no base model is; restore it", field=str(path))
    return SharedBase(to, digest, path)
