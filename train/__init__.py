"""Training: configuration, parallelism, optimizer, checkpoints and the training loop."""
