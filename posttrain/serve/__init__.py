"""A policy behind OpenAI's interface, for agents that know nothing of it, and a record of what they did with it."""
