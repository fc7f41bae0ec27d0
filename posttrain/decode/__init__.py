"""Decoding with access to the layers of a causal model: contrasts of layers, gated token by token."""
