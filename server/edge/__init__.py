"""The HTTP edge: what holds for connections, before and after there is a request."""
