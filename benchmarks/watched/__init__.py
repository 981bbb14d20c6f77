"""A running server under the real Prometheus and Alertmanager: what alerts do, and what dashboards show."""
