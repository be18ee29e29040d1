"""How the weight of a training example moves the final parameters along the training trajectory: ``d theta / d w``.

With a record of the training, its steps are followed one by one (``index.approximation: unrolled``):

* ``recorded_steps``: the stages of unrolling a record: linearise every step once, then run through the steps
* ``linearization``: a recorded step as rows of its batch, each with the displacement of the final weights by it
* ``step_displacement``: how a change of one step's gradient displaces the final weights, by layer
* ``lora_cross_terms``: the part of a step's Hessian between the two factors of a LoRA adapter
* ``residual_hessian``: a step's Hessian beyond its Gauss-Newton matrix, exact along a few directions
* ``sensitivity``: the recursion for ``d theta / d w`` over the linearised steps

Else a few long segments stand for the steps (``index.approximation: segments``):

* ``trajectory``: a few points of the trajectory, recorded or on the linear path from the base model
* ``source_segments``: SOURCE (Bae et al. 2024) in closed form over these segments
"""
