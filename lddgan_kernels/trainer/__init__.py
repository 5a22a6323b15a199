"""The trainer: stages, losses, checkpoints and logs."""
