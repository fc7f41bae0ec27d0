"""Tiny worlds: tasks generated in code, with a base model that is trained on them from scratch in seconds.

A world is a frozen dataclass: what it is made of are its fields, so that it can be named, cached and made again.
"""
