"""How a restored database says so to the service that owns it: one row among its stream positions.

The row bears the id of the restore in place of an epoch. Its number is PENDING until the service has made good what
the database lacks, and the Unix second of that from then on. It needs no table of its own, so that a backup of an
older schema can be marked too.
"""

from __future__ import annotations

RESTORED = "restored"
"""Name of the row."""
PENDING = 0
FULL_REPORT_SECONDS = 600.0
"""After this long, nothing waits any more for hosts to report all they know."""
FIRST_FRAME_PER_SECOND = 1_000_000


def frame_base(unix_seconds: float) -> int:
    """Return where frame numbers go on after a loss: microseconds are above any count of frames."""
    return int(unix_seconds * FIRST_FRAME_PER_SECOND)
