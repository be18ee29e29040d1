"""Other programs that a verb starts: a BentoML server, Prometheus, and its checker of rules."""
