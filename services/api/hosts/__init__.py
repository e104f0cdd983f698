"""Hosts over REST: what they have, what runs there, joining, draining, forgetting."""
