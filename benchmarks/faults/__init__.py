"""Faults of every kind on a served demo, while callers ask for what it must not say."""
