"""Telemetry of jobs: metrics, logs, samples, system figures and the frames of the live feed.

It lives in a database file (or schema) of its own, because nothing else can make it again.
"""
