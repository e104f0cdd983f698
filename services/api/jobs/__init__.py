"""Jobs over REST: submit, read, act, delete."""
