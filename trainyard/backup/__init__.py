"""`trainyard backup` and `trainyard restore`: one file with all that only this stack's databases know."""
