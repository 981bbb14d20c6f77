"""The gate of a LUNAR change as a detector: it abstains where the change would redirect."""
