"""REST, WebSocket and the read model."""
