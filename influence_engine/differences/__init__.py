"""What fine-tuning changed: base model against fine-tuned model.

* ``modules``: ``BaseDifference``, the base model's own answer and a first-order split of the change over modules.
"""

from influence_engine.differences.modules import BaseDifference

__all__ = ["BaseDifference"]
