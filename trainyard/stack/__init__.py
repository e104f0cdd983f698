"""The embedded stack: broker, api, scheduler and agent as separate processes of one machine."""
