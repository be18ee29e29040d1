"""Adopting a model that was trained elsewhere: its checkpoint, its data, a config, a service."""
