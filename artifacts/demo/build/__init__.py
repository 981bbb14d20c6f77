"""Builds the demo model: `python -m artifacts.demo.build`. Importing this package does not import torch."""

from artifacts.demo.build.rows import LANGUAGES, SKILLS, Row, Split, exact_match
from artifacts.demo.build.skills import prompts

__all__ = ["LANGUAGES", "SKILLS", "Row", "Split", "exact_match", "prompts"]
