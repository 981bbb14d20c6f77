"""Engines: what runs the model with its guards. One file each; `base` holds what they have in common."""
