"""A small model of real text, what it is trained on, and what is only measured."""
