"""Runs the benchmarks one after the other; what `make bench` runs. Tables go to the output, progress beside it.

    python benchmarks/bench.py --list                     what there is, and roughly how long each takes
    python benchmarks/bench.py --only query --only lds    those whose names begin so
    python benchmarks/bench.py                            all of them: most of a day

What was trained is kept in state/, so that an interrupted one goes on and a second one takes less. One that fails does
not stop the others: the last lines say which did, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support import PROJECT, parser_of, remark, table


@dataclass(frozen=True)
class Run:
    """One benchmark at some options.

    Attributes:
        name: What ``--only`` chooses by.
        minutes: Very roughly, for the first time on two cores with nothing beside it.
        options: For the command line.
        script: In this folder, without its ending; the name if left out.
        demo: Whether it is about the demo's model, which then is fine-tuned, indexed and given a reference before.
    """

    name: str
    minutes: int
    options: str = ""
    script: str = ""
    demo: bool = False

    @property
    def command(self) -> list[str]:
        """As it is run in the project's folder."""
        return [f"benchmarks/{self.script or self.name}.py", *self.options.split()]


GENTLE = "--data tweets --warmup 0.5 --examples 400 --queries 32 --directions 32 --exact 8"

RUNS = (
    Run("recording_cost", 1),
    Run("query", 5),
    Run("predict_overhead", 5, demo=True),
    Run("job_latency", 5, demo=True),
    Run("explain_command", 2, demo=True),
    Run("drift_alerts", 10, demo=True),
    Run("against_commit", 10, demo=True),
    Run("influence_drift", 10),
    Run("coordinates", 5),
    Run("smoothness", 5),
    Run("small_models", 5),
    Run("finetune_overhead", 10),
    Run("replay_cost", 10),
    Run("index_building", 15),
    Run("index_building-segments", 15, "--segments", "index_building"),
    Run("explain_latency", 40),
    Run("planted_errors", 15),
    Run("entity_f1", 5),
    Run("planted_mark", 5),
    Run("picture_quality", 5),
    # The works that RESULTS.md judges the methods by.
    Run("lds-movies", 60, "--learning-rate 1e-4 --directions 64 --exact 16", "lds"),
    Run("lds-tweets", 45, "--learning-rate 1e-4 --directions 32 --exact 16 --data tweets", "lds"),
    Run("lds-amazon", 60, "--learning-rate 1e-4 --directions 32 --exact 16 --data amazon", "lds"),
    Run("lds-full", 150, f"--trainable all --learning-rate 4e-5 {GENTLE}", "lds"),
    Run("lds-lora", 90, f"--trainable lora --learning-rate 4e-4 --alpha 128 {GENTLE}", "lds"),
    Run("lds-adopted", 30, "--learning-rate 1e-4 --adopted with-base", "lds"),
    Run("peers", 60),
)

DEMO = (("finetune",), ("index", "build"), ("reference", "build"))
DEMO_MINUTES = 5


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("--only", action="append", help="those whose names begin so; may be given again")
    found.add_argument("--list", action="store_true", help="only say what would be run")
    return found


def main() -> int:
    """Says what is to come, and runs it."""
    options = parser().parse_args()
    chosen = [run for run in RUNS if run.name.startswith(tuple(options.only or [""]))]
    if not chosen:
        remark(
            f"no benchmark's name begins with {' or '.join(options.only)}; there are: "
            + ", ".join(run.name for run in RUNS)
        )
        return 2
    demo = any(run.demo for run in chosen)
    plan = [{"benchmark": "the demo's model", "minutes, roughly": DEMO_MINUTES, "command": ""}] * demo
    plan += [
        {"benchmark": run.name, "minutes, roughly": run.minutes, "command": " ".join(["python", *run.command])}
        for run in chosen
    ]
    plan.append({"benchmark": "all", "minutes, roughly": sum(int(each["minutes, roughly"]) for each in plan)})
    print(table(plan), flush=True)
    if options.list:
        return 0
    verbs = [[str(Path(sys.executable).with_name("bento-audit")), *verb, "sentiment"] for verb in DEMO] if demo else []
    for verb in verbs:
        subprocess.run(verb, cwd=PROJECT, check=True)
    failed = []
    for run in chosen:
        print(f"\n== {run.name}\n", flush=True)
        if subprocess.run([sys.executable, *run.command, *["--json"] * options.json], cwd=PROJECT).returncode:
            failed.append(run.name)
    if failed:
        remark(f"failed, see above: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
