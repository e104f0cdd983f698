"""Checks on the host before a trainer starts, one file each; `checks.run_checks` calls them in order."""
