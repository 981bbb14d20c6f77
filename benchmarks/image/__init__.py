"""Whether a built image does what docs/operating.md says of it."""
