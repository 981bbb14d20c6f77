"""People's clients against a running server: what each asks, shows and sends back, in an environment of its own."""
