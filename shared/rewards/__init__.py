"""The contract of the reward service: what may be asked for, and what it answers."""
