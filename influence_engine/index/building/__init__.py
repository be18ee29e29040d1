"""How an index is built, from a model and its training examples to a published version.

* ``pipeline``: the order of things: check the resources, run the stages, write the table and the manifest, publish
* ``context``: the objects that every stage needs, and the options that a caller may leave out
* ``build_digest``: the digest by which a version is named and found again
* ``stages``: layer bases, eigenbasis, loss gradients, sensitivities: each stage on disk before the next one begins
* ``write_table``: rotates the vectors into the GGN's eigenvectors, and writes them with the examples
* ``approximation``: which approximation an index is of: unrolled steps, segments, or the final weights
* ``provenance``: digests and facts of the training behind a model; why an answer cannot be had
* ``estimated_training``: preconditioner and damping of a training that was not recorded
* ``retention``: how much of the influence on held-out examples the index keeps
* ``row_blocks``: rows for fitting a basis, on disk in blocks
* ``cost_estimate``: predicted time, disk and memory, and which smaller settings would fit
* ``resource_check``: refuses what does not fit, and words the refusal where disk or memory run out all the same
"""
