"""Pure scheduling decisions: no I/O, no clock and no asyncio below this line."""
