"""`python -m services.api`, and `python -m services.api rebuild` while it is stopped."""

import sys

from services.api import main as api
from services.api import rebuild

if __name__ == "__main__":
    raise SystemExit(rebuild.main() if sys.argv[1:] == ["rebuild"] else api.main())
