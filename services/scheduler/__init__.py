"""Assigns jobs to hosts; owns status, attempt and desired state."""
