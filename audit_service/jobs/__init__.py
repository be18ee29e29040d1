"""Durable background jobs: a queue on disk, and a process of low priority that works on it."""
