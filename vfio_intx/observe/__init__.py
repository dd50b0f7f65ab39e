"""Tracing: kernel events in, one span per interrupt out."""
