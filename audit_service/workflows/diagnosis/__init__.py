"""What ``bento-audit doctor`` looks at: the machine, and everything that was made from a config."""
