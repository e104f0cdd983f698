"""Computer algebra in processes that can be killed: it may hang, and its own timeout works on a main thread only."""
