"""Exact derivatives of a recorded run's final weights with respect to the weights of its examples."""

from influence_engine.replay.plan import ReplayPlan, plan_replay
from influence_engine.replay.rows import replay

__all__ = ["ReplayPlan", "plan_replay", "replay"]
