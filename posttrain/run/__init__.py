"""A training run and its files."""
