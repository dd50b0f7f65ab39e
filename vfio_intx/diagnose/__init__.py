"""Conclusions from facts: pure functions that predict, explain and name what mends it."""
