"""The api's own settings, beside those that every service shares."""

from __future__ import annotations

from urllib.parse import urlsplit

from shared.settings import Settings

BODY_LIMIT = 1 << 20
"""Bytes of a request body; a job's configuration is some kilobytes."""
BODY_SECONDS = 20.0
"""A body that takes longer is a slow client or an attack; it holds a connection meanwhile."""
OUTBOX_BATCH = 256
JOIN_CODE_HOURS = 1
DEV_ORIGINS = ("http://localhost:5173", "http://127.0.0.1:5173")
"""The user interface's development server (PRODUCT section 1)."""


class ApiSettings(Settings):
    """Read once in main; everything else gets it passed in."""

    allowed_hosts: str = ""
    """Comma-separated names by which this api may be reached, such as `api` or `trainyard.example.org`."""

    @property
    def origins(self) -> tuple[str, ...]:
        """Return the origins, besides the api's own, whose pages may use it."""
        named = tuple(o.strip().rstrip("/") for o in self.allowed_origins.split(",") if o.strip())
        return named + (DEV_ORIGINS if self.is_loopback else ())

    @property
    def host_names(self) -> frozenset[str]:
        """Return the names that a Host header may carry; addresses are always allowed."""
        urls = [*self.origins, self.url or ""]
        from_urls = {urlsplit(u).hostname or "" for u in urls}
        named = {h.strip().lower() for h in self.allowed_hosts.split(",")}
        return frozenset({"localhost", self.api_host.lower(), *from_urls, *named} - {""})
