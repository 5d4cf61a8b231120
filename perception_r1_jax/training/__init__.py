"""Training state, optimizer, checkpoints, metrics and the loop."""
