"""Loading and saving models, choosing their trained weights, and forward passes without redundant computation.

* ``loading``: base and fine-tuned models, adapters and processors, from safetensors only; digests of weights.
* ``trainable``: which parameters are trained: all, adapters, upper layers, or by name.
* ``frozen_prefix``: caches the outputs of the frozen layers below the first trained one.
* ``first_token_head``: runs the last layer of a classifier for the one position that its head reads.
"""
