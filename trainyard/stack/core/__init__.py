"""Decisions of the supervisor: no I/O, no clock."""
