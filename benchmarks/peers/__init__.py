"""Competing packages on the work of ``benchmarks/work.py``, one module each; ``benchmarks/peers.py`` runs them."""
