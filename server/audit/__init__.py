"""The audit log: what guards did, one JSON line each, in files whose lines are chained by their digests.

It never holds text of a prompt, unless the operator switches that on.
"""
