"""Scenarios of the patched QEMU: each defect before and after its patch, and schemes switched under load."""
