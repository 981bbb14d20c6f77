"""Other projects' own tests of the API against a running server, from copies that the caller has."""
