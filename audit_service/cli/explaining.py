"""One explanation without a server, by the code and in the shape that the server has."""

from __future__ import annotations

from typing import Any

from audit_service.cli.rendering import both_sides
from audit_service.config import AuditConfig
from audit_service.engine.explaining import explain
from audit_service.engine.loading import load
from audit_service.schemas import EngineItem, Polarity, Target
from influence_engine.errors import InfluenceError, InputError
from influence_engine.progress import Progress


def explain_text(
    config: AuditConfig,
    text: str,
    *,
    target: str | None,
    top_k: int,
    polarity: Polarity,
    progress: Progress,
) -> dict[str, Any]:
    """What ``/audit/explain`` would answer for ``text``, without ids; ``top_k`` examples of each polarity asked for.

    Raises:
        InputError: the text or the target cannot be used.
        InfluenceError: model or index are missing, have changed or do not belong together.
    """
    progress("loading model and index", 0, 1)
    loaded = load(config)
    progress("loading model and index", 1, 1)
    sides: list[Polarity] = ["proponents", "opponents"] if polarity == "both" else [polarity]
    answers = []
    for side in sides:
        item = EngineItem(
            input={config.task.text: text},
            target=None if target is None else Target(label=target),
            top_k=top_k,
            polarity=side,
        )
        (answer,) = explain(loaded, [item])
        if "error" in answer:
            error = answer["error"]
            kind = InputError if error["code"] == InputError.code else InfluenceError
            raise kind(error["message"], field=error.get("field"))
        answers.append(answer["explanation"])
    return both_sides(answers)
