"""Drift seen from outside the prediction path: the baseline, and reports over files and the log."""
