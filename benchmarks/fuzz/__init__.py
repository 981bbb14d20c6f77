"""Mutated artifacts, files to import and requests: each is refused by a clear error, or means what it says."""
