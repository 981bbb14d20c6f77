"""Engines: what runs the model with its guards. A folder for each.

`base` is the contract with the server. The other modules here are what engines share: settings, errors, the judging of
an answer and its stream of events.
"""
