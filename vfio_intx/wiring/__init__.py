"""The only folder that changes the machine."""
