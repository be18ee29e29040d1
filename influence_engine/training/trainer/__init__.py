"""A training by the Trainer of transformers, recorded as ours is."""
