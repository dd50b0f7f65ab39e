"""The shared model of one INTx line: stages, schemes, facts, findings. Pure."""
