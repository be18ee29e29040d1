"""Influence that is measured: training again without, or with other, examples, beside what was predicted."""

from influence_engine.counterfactual.changes import Change, editing, members, relabelling, removal
from influence_engine.counterfactual.estimating import Estimate, estimate
from influence_engine.counterfactual.measuring import Measured, QueryChange, measure
from influence_engine.counterfactual.single import SingleStep, train_on_one
from influence_engine.counterfactual.tangent import first_order
from influence_engine.counterfactual.twin import Agreement, agreement

__all__ = [
    "Agreement",
    "Change",
    "Estimate",
    "Measured",
    "QueryChange",
    "SingleStep",
    "agreement",
    "editing",
    "estimate",
    "first_order",
    "measure",
    "members",
    "relabelling",
    "removal",
    "train_on_one",
]
