"""Trainers, one file an algorithm; torch is allowed from here down only."""
