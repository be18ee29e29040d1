"""This checkout against an earlier commit: the same index from one recorded run, the same answers, as fast?

    python benchmarks/against_commit.py                       after `bento-audit finetune sentiment`, or the demo
    python benchmarks/against_commit.py --commit 3ba35ab      left out: the last tag, else the commit before HEAD
    python benchmarks/against_commit.py --predictions 0 --explanations 0      the indexes alone

The commit is cloned into a temporary folder and runs in this Python environment. Each of the two builds an index and an
export of the recorded run of the config, and serves them; nothing is written outside of the folder. Both must be able
to read the run: where the older code refuses it, make the run with that code.
Compared are the indexes' digests and, with this checkout's code, the influence that both give every training example
on held-out inputs; what the two servers answer to the same inputs; and their latencies: both are up at once, requests
go to them in pairs of random order (`paired.py`), and the ratio of now to then stands with its 95% interval. *Unlike*
is the largest difference over the largest influence.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import Question, in_pairs, median_ms, ratio
from support import PROJECT, Connection, Server, machine, parser_of, remark, serving, show

from audit_service.config import AuditConfig, load_config
from audit_service.workspace import Workspace
from influence_engine import Attributor, InfluenceIndex
from influence_engine.errors import InfluenceError
from influence_engine.training.record import MANIFEST

THEN, NOW = "then", "now"
VERB = "from audit_service.cli import main; main()"
CONFIG = PROJECT / "configs" / "sentiment.yaml"
READY = ("/audit/explain", b'{"input": {"text": "fine"}}')


@dataclass(frozen=True)
class Side:
    """One of the two: code, and the folders of what it makes.

    Attributes:
        code: Its checkout.
        folder: Of index and export.
    """

    code: Path
    folder: Path

    @property
    def index(self) -> Path:
        """Where its index goes."""
        return self.folder / "index"

    @property
    def environment(self) -> dict[str, str]:
        """Of its verbs and its server: folders of its own; packages that were fetched already are shared."""
        return {
            "BENTO_AUDIT_DATA": os.environ.get("BENTO_AUDIT_DATA", str(PROJECT / "data")),
            "BENTO_AUDIT_FOLDERS__INDEX": str(self.index),
            "BENTO_AUDIT_FOLDERS__ONNX": str(self.folder / "onnx"),
        }

    def build(self, config: Path) -> float:
        """Builds index and export; returns the processor's seconds."""
        environment = {
            **os.environ,
            **self.environment,
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(self.folder / "bentoml"),
            "BENTO_AUDIT_STATE": str(self.folder / "state"),
            "PYTHONPATH": str(self.code),
        }
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", VERB, "index", "build", str(config), "--json"]
        built = subprocess.run(command, cwd=self.code, env=environment, stdout=subprocess.DEVNULL)
        if built.returncode:
            raise SystemExit(f"the code in {self.code} did not build its index; it says above why")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("--commit", help="what to compare with; the last tag, else the commit before HEAD")
    found.add_argument("--config", type=Path, default=CONFIG, help="another sentiment.yaml, with a run of its own")
    found.add_argument("--queries", type=int, default=40, help="held-out inputs whose influences are compared")
    found.add_argument("--predictions", type=int, default=300, help="pairs of /predict; 0 and 0 start no server")
    found.add_argument("--explanations", type=int, default=150, help="pairs of /audit/explain")
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    config = load_config(options.config)
    if options.config.name != CONFIG.name:
        raise SystemExit(f"the bento that is served reads a file called {CONFIG.name}, not {options.config.name}")
    if not (config.run_folder / MANIFEST).is_file():
        raise SystemExit(f"there is no recorded run in {config.run_folder}; run: bento-audit finetune {config.spelled}")
    commit = options.commit or earlier_commit()
    path = options.config.absolute()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clone(commit, folder / "code")
        sides = {THEN: Side(folder / "code", folder / THEN), NOW: Side(PROJECT, folder / NOW)}
        report: dict[str, Any] = {"machine": machine(), THEN: described(folder / "code"), NOW: described(PROJECT)}
        report["build_processor_s"] = {}
        for one, side in sides.items():
            remark(f"{one}: index and export by the code of {report[one]}")
            report["build_processor_s"][one] = round(side.build(path), 1)
        report["indexes"] = indexes(config, {one: side.index for one, side in sides.items()}, options.queries)
        if options.predictions or options.explanations:
            servers = {
                one: Server("bentos.sentiment.service:Sentiment", READY, side.code, side.environment)
                for one, side in sides.items()
            }
            texts = [example["text"] for example in Workspace(config).held_out]
            with serving(servers, path, folder) as (ports, _):
                report["answers"] = asyncio.run(answers(ports, texts[: options.queries]))
                for kind, count in asked(options, texts).items():
                    report[kind.path] = asyncio.run(latencies(ports, kind, count))
    show(report, options)


# The commit


def earlier_commit() -> str:
    """The last tag that leads to HEAD, or where there is none, HEAD's parent."""
    tag = subprocess.run(["git", "describe", "--tags", "--abbrev=0"], cwd=PROJECT, capture_output=True, text=True)
    return tag.stdout.strip() if tag.returncode == 0 else "HEAD~1"


def clone(commit: str, folder: Path) -> None:
    """A checkout of the commit, which borrows the objects of this repository."""
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"], cwd=PROJECT, capture_output=True, text=True
    )
    if found.returncode:
        raise SystemExit(f"{PROJECT} has no commit {commit!r}; name one with --commit")
    for command in (
        ["clone", "--quiet", "--shared", "--no-checkout", str(PROJECT), str(folder)],
        ["-C", str(folder), "checkout", "--quiet", "--detach", found.stdout.strip()],
    ):
        subprocess.run(["git", *command], check=True)


def described(code: Path) -> str:
    """A checkout's commit with its date, and whether there is more in it than was committed."""
    lines = [
        subprocess.run(["git", "-C", str(code), *command], check=True, capture_output=True, text=True).stdout.strip()
        for command in (["log", "-1", "--format=%h of %cs"], ["status", "--porcelain", "--untracked-files=no"])
    ]
    return lines[0] + (", with changes" if lines[1] else "")


# The indexes


def indexes(config: AuditConfig, folders: Mapping[str, Path], queries: int) -> dict[str, Any]:
    """Digests and scores of the two, opened by this checkout's code."""
    try:
        opened = {one: InfluenceIndex.open(folder) for one, folder in folders.items()}
        manifests = {one: index.manifest for one, index in opened.items()}
        found: dict[str, Any] = {
            "rows": len(opened[NOW]),
            "equal_build_digests": manifests[THEN].build_digest == manifests[NOW].build_digest,
            "equal_content_digests": manifests[THEN].content_digest == manifests[NOW].content_digest,
        }
        workspace = Workspace(config)
        inputs = [{"text": example["text"]} for example in workspace.held_out[:queries]]
        scores = {
            one: Attributor(workspace.run.load_model(), workspace.task, index).scores(inputs, "estimated")
            for one, index in opened.items()
        }
    except InfluenceError as error:
        return {"not_compared": f"this checkout cannot read the index of then: {error.message}"}
    both = torch.stack([scores[THEN].flatten(), scores[NOW].flatten()])
    return found | {
        "queries": len(inputs),
        "scores_unlike": unlike(both[0].numpy(), both[1].numpy()),
        "scores_correlation": round(float(torch.corrcoef(both)[0, 1]), 6),
    }


def unlike(then: np.ndarray, now: np.ndarray) -> float:
    """The largest difference over the largest size."""
    return float(np.abs(then - now).max() / np.abs(then).max())


# The servers


def asked(options: argparse.Namespace, texts: Sequence[str]) -> dict[Question, int]:
    """The kinds of requests, and how many pairs of each."""
    kinds = {
        Question("/predict", tuple(json.dumps({"text": text}).encode() for text in texts)): options.predictions,
        Question("/audit/explain", tuple(map(explanation_of, texts))): options.explanations,
    }
    return {kind: count for kind, count in kinds.items() if count}


def explanation_of(text: str) -> bytes:
    """The body that asks for one."""
    return json.dumps({"input": {"text": text}, "top_k": 10}).encode()


async def answers(ports: Mapping[str, int], texts: Sequence[str]) -> dict[str, Any]:
    """What both answer to the same inputs; it warms them up, too."""
    connections = {one: await Connection.open(port) for one, port in ports.items()}
    influences: dict[str, list[float]] = {THEN: [], NOW: []}
    confidences: dict[str, list[float]] = {THEN: [], NOW: []}
    same_examples = 0
    for text in texts:
        named: dict[str, dict[str, float]] = {}
        for one, connection in connections.items():
            predicted = json.loads(await connection.answer("/predict", json.dumps({"text": text}).encode()))
            explained = json.loads(await connection.answer("/audit/explain", explanation_of(text)))["examples"]
            confidences[one].append(predicted["confidence"])
            named[one] = {example["text"]: example["influence"] for example in explained}
        same_examples += list(named[THEN]) == list(named[NOW])
        for one in (THEN, NOW):
            influences[one] += [named[one][example] for example in named[THEN] if example in named[NOW]]
    then, now = (np.array(confidences[one]) for one in (THEN, NOW))
    return {
        "inputs": len(texts),
        "with_the_same_examples_in_the_same_order": same_examples,
        "influences_unlike": unlike(*(np.array(influences[one]) for one in (THEN, NOW))),
        "largest_difference_of_confidence": float(np.abs(then - now).max()),
    }


async def latencies(ports: Mapping[str, int], question: Question, count: int) -> dict[str, Any]:
    """Of one kind of requests."""
    pairs = await in_pairs(ports, question, count)
    return {
        "pairs": count,
        "then_ms": round(median_ms(pairs, THEN), 3),
        "now_ms": round(median_ms(pairs, NOW), 3),
        "ratio": str(ratio(pairs, NOW, THEN)),
    }


if __name__ == "__main__":
    main()
