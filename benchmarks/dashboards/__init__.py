"""Grafana's dashboards, made by its own typed builder, so that they are valid by construction."""
