"""Draws an evaluation; needs matplotlib (the extra ``report``), which nothing else here does."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from audit_service.workflows.evaluation import TRUTHS
from influence_engine.data.report import plural
from influence_engine.evaluation import Evaluation
from influence_engine.evaluation.comparison import by_truth
from influence_engine.files import atomic_write

PLOT = "evaluation.png"
OURS, OTHERS = "#1f6f8b", "#b8b8b8"


def draw_evaluation(found: Evaluation, path: Path, unit: str = "log-odds") -> None:
    """Draws the LDS of every method as bars with intervals, one panel a ground truth, and single removals as points.

    Args:
        found: The results that are drawn.
        path: The PNG file.
        unit: Unit of the influences; empty where the task does not say.
    """
    panels = by_truth(found.rows)
    count = len(panels) + (found.single is not None)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.2 * count, 3.4), layout="constrained")
        axes = figure.subplots(1, count, squeeze=False)[0]
        for axis, ((kind, fraction), rows) in zip(axes, panels.items(), strict=False):
            shown = rows[::-1]
            colours = [OURS if row.method.startswith(("estimated", "replayed")) else OTHERS for row in shown]
            errors = [[max(0.0, r.lds - r.low) for r in shown], [max(0.0, r.high - r.lds) for r in shown]]
            axis.barh([row.method for row in shown], [row.lds for row in shown], xerr=errors, color=colours, height=0.6)
            axis.axvline(0, color="black", linewidth=0.6)
            axis.set_xlim(min(0.0, *(row.low for row in shown)) - 0.02, 1)
            axis.set_xlabel("LDS (1 is perfect; bars: 90% interval)")
            axis.set_title(f"{TRUTHS[kind]}, {fraction:.0%} left out, {rows[0].retrainings} retrainings")
        if found.single is not None:
            axis = axes[-1]
            estimated = [value for row in found.single.estimated for value in row]
            measured = [value for row in found.single.measured for value in row]
            axis.scatter(estimated, measured, s=5, alpha=0.4, color=OURS, linewidths=0)
            reach = max(map(abs, [*estimated, *measured])) * 1.05
            axis.plot([-reach, reach], [-reach, reach], color="black", linewidth=0.6)
            axis.set_xlim(-reach, reach)
            axis.set_ylim(-reach, reach)
            axis.set_xlabel(f"estimated influence ({unit})" if unit else "estimated influence")
            axis.set_ylabel("measured by leaving it out")
            axis.set_title(f"{plural(found.single.examples, 'example')} one at a time, slope {found.single.slope:.2f}")
        with atomic_write(path) as aside:
            figure.savefig(aside, format="png", dpi=150)
