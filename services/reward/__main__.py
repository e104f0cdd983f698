"""`python -m services.reward`."""

from __future__ import annotations

import sys

from services.reward.main import main

if __name__ == "__main__":  # the verifier's processes import this module under another name
    sys.exit(main())
