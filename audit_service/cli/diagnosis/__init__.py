"""What ``bento-audit doctor`` looks at."""
