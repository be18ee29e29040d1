"""The checks of ``doctor``: of the machine, and of everything that was made from a config."""
