"""Figures, each from one command; results as measured lie in `results/`. Never imported by the package."""
