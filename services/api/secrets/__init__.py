"""Secrets of jobs: written by users, read by nobody but the attempt they are for."""
