"""A small model with ten skills, its data, and the builder that makes both."""
