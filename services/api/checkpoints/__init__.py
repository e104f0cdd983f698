"""Checkpoints over REST: the list, and each as an archive."""
