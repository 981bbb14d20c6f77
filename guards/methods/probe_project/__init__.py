"""Probes as an intervention: what they read of the skill is taken out of the residual stream."""
