"""Drift outside the prediction path: builds the baseline, and reports on files of inputs and recorded predictions."""
