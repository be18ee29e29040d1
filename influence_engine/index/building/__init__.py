"""How an index is built: probe, plan, pass over the examples, write, publish."""
