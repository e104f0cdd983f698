"""The reward gateway."""
