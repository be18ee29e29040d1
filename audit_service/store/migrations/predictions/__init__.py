"""Versions of the predictions, reservations and outcomes."""
