"""Detectors under test: what each is fitted on, how all are measured in one pass, and the rows that come of it."""
