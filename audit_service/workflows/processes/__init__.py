"""Other programs that the command line starts: a BentoML server, Prometheus, and its checker of rules."""
