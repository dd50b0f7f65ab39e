"""A whole passthrough host under TCG, for machines without the hardware."""
