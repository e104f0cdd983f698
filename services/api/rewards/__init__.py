"""What rewards cost and how their providers do: read from what the reward service says."""
