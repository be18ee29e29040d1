"""Models: loading and saving, and two ways to run only the part that matters."""
