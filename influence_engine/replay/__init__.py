"""Replay: exact derivatives of a recorded run's final weights with respect to the weights of its examples.

* ``rows``: ``replay``, reverse differentiation through all recorded steps.
* ``reverse``: one recorded step in reverse, for many directions at once.
* ``plan``: time, memory and disk that a replay will take.
"""

from influence_engine.replay.plan import ReplayPlan, plan_replay
from influence_engine.replay.rows import replay

__all__ = ["ReplayPlan", "plan_replay", "replay"]
