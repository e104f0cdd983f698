"""Checks made before a job takes a GPU: pure rules and thin readers, used by the api and again on the host.

Nothing here imports torch; every problem is a `Finding`, never an exception.
"""
