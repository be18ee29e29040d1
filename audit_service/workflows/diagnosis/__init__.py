"""What ``doctor`` checks: the machine, and everything that was made from a config."""
