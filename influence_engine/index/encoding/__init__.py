"""From a gradient to the vector that is searched, quickly on either device.

* ``encoder``: layer gradients to the index's ``k`` numbers: preconditioner, layer bases, eigenbasis of the GGN
* ``cuda_graph``: the same for a single query on a GPU, by one launch
* ``mkldnn_packing``: the eigenbasis laid out for fast products on a processor
"""
