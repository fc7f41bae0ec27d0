"""SRRL: x (arXiv:2505.22407)."""
