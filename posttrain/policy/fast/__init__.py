"""Sampling and scoring without padding: caches, packed attention, the output head."""
