"""What ``bento-audit init`` finds out about a model, its data and its service before it writes a config."""
