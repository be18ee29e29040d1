"""Drift seen from outside the prediction path: the reference, and reports over files and the log."""
