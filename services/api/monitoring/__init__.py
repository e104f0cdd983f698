"""Watching a job: metrics, logs and samples by REST, and the live feed by WebSocket."""
