"""The verbs of `bdg <verb>`: each composes its config, calls the rooms below and prints the result."""
