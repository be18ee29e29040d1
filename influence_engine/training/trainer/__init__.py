"""Records a run of the Trainer of ``transformers``, as ``finetune`` records its own.

* ``callback``: what a user passes to the Trainer: callback, data set and collator.
* ``run``: follows the training step by step and writes the record.
* ``hooks``: reads rows and losses of the batches that the model is given.
* ``checks``: describes the optimiser, and finds what keeps a run from being executed again.
"""
