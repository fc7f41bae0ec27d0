"""What runs in the interpreters of the sandbox: the standard library alone, nothing of posttrain, no secret."""
