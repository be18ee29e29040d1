"""Finds the predictions that a request names, and holds no thread while another worker is about to write one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from audit_service.store.predictions import PredictionRecord, PredictionStore, is_fresh, not_found
from influence_engine.errors import InfluenceError

OTHER_WORKER_S = 0.5
"""How long fresh ids are looked for, all those of a request together."""

LOOK_EVERY_S = 0.02


class Recording(Protocol):
    """What is needed of an audit."""

    store: PredictionStore


Owner = TypeVar("Owner", bound=Recording)
Found = tuple[Owner, PredictionRecord]


async def look_up(
    owners: Sequence[Owner], prediction_ids: Iterable[str], *, other_worker_s: float = OTHER_WORKER_S
) -> dict[str, Found[Owner] | InfluenceError]:
    """Every prediction that is named, with the audit whose store has it, or why there is none.

    Args:
        owners: The audits of a service.
        prediction_ids: What was asked for.
        other_worker_s: Seconds for which fresh ids that are not there yet are looked for.
    """
    wanted = set(prediction_ids)
    found: dict[str, Found[Owner] | InfluenceError] = {}
    give_up = time.monotonic() + other_worker_s
    while wanted:
        late = time.monotonic() >= give_up
        found |= await asyncio.to_thread(_there, owners, wanted)
        wanted -= found.keys()
        for absent in [one for one in wanted if late or not is_fresh(one)]:
            found[absent] = not_found(absent)
            wanted.remove(absent)
        if wanted:
            await asyncio.sleep(LOOK_EVERY_S)
    return found


def _there(owners: Sequence[Owner], prediction_ids: Iterable[str]) -> dict[str, Found[Owner] | InfluenceError]:
    """What is on record by now; a store that cannot be read may have any of the others."""
    found: dict[str, Found[Owner] | InfluenceError] = {}
    for owner in owners:
        missing = [one for one in prediction_ids if one not in found]
        try:
            known = owner.store.known(missing)
        except InfluenceError as error:
            return {**dict.fromkeys(missing, error), **found}
        for prediction_id in known:
            try:
                found[prediction_id] = owner, owner.store.get(prediction_id)
            except InfluenceError as error:
                found[prediction_id] = error
    return found
