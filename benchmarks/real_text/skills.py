"""The former name of `benchmarks.prompts.skills`."""

from benchmarks.prompts.skills import FRAME, SKILLS, Skill, forget_source, retain_sources

__all__ = ["FRAME", "SKILLS", "Skill", "forget_source", "retain_sources"]
