"""The explanation engine: holds model and index, answers in batches, and tells its state."""
