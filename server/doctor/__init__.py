"""A self-test of guards on the machine that they are to run on."""
