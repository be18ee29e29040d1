"""Counterfactual training: what other training data would have changed, predicted and measured by training again.

* ``changes``: ``Change``, examples removed, given another target, or with another input.
* ``estimating``: ``estimate``, the change predicted from an index.
* ``tangent``: ``first_order``, the change predicted by forward-mode differentiation along the recorded steps.
* ``measuring``: ``measure``, the recorded steps executed again with the change.
* ``cost``: time, memory and disk that a measurement will take.
* ``single``: ``train_on_one``, the empirical influence function.
* ``surrogate_agreement``: ``agreement`` of a served model with the surrogate that is trained again in its place.
"""

from influence_engine.counterfactual.changes import Change, editing, members, relabelling, removal
from influence_engine.counterfactual.estimating import Estimate, estimate
from influence_engine.counterfactual.measuring import Measured, QueryChange, measure
from influence_engine.counterfactual.single import SingleStep, train_on_one
from influence_engine.counterfactual.surrogate_agreement import Agreement, agreement
from influence_engine.counterfactual.tangent import first_order

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
