"""Versions of the jobs."""
