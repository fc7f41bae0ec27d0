"""Kinds of policy: what samples decisions and can score them again."""
