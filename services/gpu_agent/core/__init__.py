"""Pure decisions of the agent: no I/O, no clock and no asyncio below this line."""
