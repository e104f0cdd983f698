"""A provider of judges as a real HTTP server that behaves like DashScope on a bad day."""
