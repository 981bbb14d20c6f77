"""The HTTP server, its engines and the command line. Imports guards; guards never imports server."""
