"""A small typed client of the REST and WebSocket interface; the CLI is built on it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import httpx2
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from shared.settings import Settings
from trainyard.models import Checkpoint, Frame, Host, Job, JobPage, Metrics

RECONNECT_SECONDS = 1.0
RECONNECT_LIMIT = 120
"""About two minutes of trying to reach the api again before a live view gives up."""


class ApiError(Exception):
    """A refusal of the api, with its problem document."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        """Keep the RFC 9457 fields."""
        self.status = status
        self.problem = dict(problem)
        self.code = str(problem.get("code", "unknown"))
        self.detail = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")
        self.errors: list[dict[str, Any]] = list(problem.get("errors") or [])
        super().__init__(self.detail)


class ApiUnreachable(ConnectionError):
    """Nothing answers at the api's address."""


def default_url(settings: Settings) -> str:
    """Return TRAINYARD_URL, else the address that `trainyard up` wrote, else the configured port."""
    if settings.url:
        return settings.url.rstrip("/")
    written = settings.home / "run" / "stack.json"
    try:
        return str(json.loads(written.read_text())["url"])
    except (OSError, ValueError, KeyError):
        return f"http://127.0.0.1:{settings.api_port}"


class Client:
    """Talks to one api. Raises ApiError for refusals and ApiUnreachable when nothing answers."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        lang: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        """Read TRAINYARD_URL and TRAINYARD_API_TOKEN where no argument is given."""
        settings = Settings()
        self.url = (url or default_url(settings)).rstrip("/")
        self.token = token or settings.api_token
        headers = {"Accept-Language": lang or _language()}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout)
        self.jobs = Jobs(self)
        self.hosts = Hosts(self)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close connections."""
        self.close()

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Send one request and return its JSON. Raises ApiError or ApiUnreachable."""
        try:
            reply = self._http.request(method, path, **arguments)
        except httpx2.TransportError as error:
            raise ApiUnreachable(
                f"No Trainyard api answers at {self.url} ({error}). Start one with `trainyard up`, or set TRAINYARD_URL."
            ) from error
        if reply.status_code >= 400:
            raise ApiError(reply.status_code, _problem(reply))
        return reply.json() if reply.content else None

    def stream_to(self, path: str, target: Path) -> int:
        """Download `path` into the file `target` and return its bytes; a cut-short file is not left."""
        partial = target.with_name(target.name + ".part")
        size = 0
        try:
            with self._http.stream("GET", path) as reply:
                if reply.status_code >= 400:
                    reply.read()
                    raise ApiError(reply.status_code, _problem(reply))
                with partial.open("wb") as file:
                    for chunk in reply.iter_bytes():
                        size += file.write(chunk)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return size

    def is_ready(self) -> bool:
        """Tell whether the api answers `/readyz` with 200."""
        try:
            return self._http.get("/readyz", timeout=2.0).status_code == 200
        except httpx2.TransportError:
            return False

    def not_ready(self) -> dict[str, str]:
        """Return what `/readyz` finds wrong, by check; empty when all is well or nobody answers."""
        try:
            checks = self._http.get("/readyz", timeout=5.0).json().get("checks", {})
        except (httpx2.TransportError, ValueError):
            return {}
        return {name: str(c.get("detail")) for name, c in checks.items() if not c.get("ok")}


class Jobs:
    """`/api/v1/jobs/`."""

    def __init__(self, client: Client) -> None:
        """Use the connection of `client`."""
        self._client = client

    def submit(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job; it is durable when this returns. The same key and body give the same job."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return Job.model_validate(
            self._client.call("POST", "/api/v1/jobs/", json=dict(body), headers=headers)
        )

    def validate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Check a body without submitting it: resolved configuration, warnings, estimates."""
        reply: dict[str, Any] = self._client.call("POST", "/api/v1/jobs:validate", json=dict(body))
        return reply

    def list(self, **query: Any) -> JobPage:
        """Return one page; query: status, algorithm, q, filter, sort, limit, after."""
        given = {k: v for k, v in query.items() if v is not None}
        return JobPage.model_validate(self._client.call("GET", "/api/v1/jobs/", params=given))

    def get(self, uuid: str) -> Job:
        """Return one job."""
        return Job.model_validate(self._client.call("GET", f"/api/v1/jobs/{uuid}"))

    def act(self, uuid: str, verb: str) -> Job:
        """Ask for cancel, pause, resume or retry. Raises ApiError 409 when its status forbids it."""
        return Job.model_validate(self._client.call("POST", f"/api/v1/jobs/{uuid}/{verb}"))

    def cancel(self, uuid: str) -> Job:
        """Stop a job for good; a checkpoint is saved first."""
        return self.act(uuid, "cancel")

    def pause(self, uuid: str) -> Job:
        """Save a checkpoint and free the GPUs."""
        return self.act(uuid, "pause")

    def resume(self, uuid: str) -> Job:
        """Go on from the newest checkpoint."""
        return self.act(uuid, "resume")

    def retry(self, uuid: str) -> Job:
        """Reopen a failed or cancelled job."""
        return self.act(uuid, "retry")

    def clone(self, uuid: str) -> dict[str, Any]:
        """Return a body for `submit` filled with the job's values; nothing is saved."""
        body: dict[str, Any] = self._client.call("POST", f"/api/v1/jobs/{uuid}/clone")
        return body

    def update(self, uuid: str, **fields: Any) -> Job:
        """Change name, description, tags, or the priority of a job that waits."""
        return Job.model_validate(self._client.call("PATCH", f"/api/v1/jobs/{uuid}", json=fields))

    def delete(self, uuid: str) -> None:
        """Delete an ended job with its history and files."""
        self._client.call("DELETE", f"/api/v1/jobs/{uuid}")

    def metrics(self, uuid: str, names: Sequence[str] | None = None, **query: Any) -> Metrics:
        """Return columnar metrics; query: x (step, epoch, time), from, to, points."""
        if names:
            query["names"] = ",".join(names)
        return Metrics.model_validate(
            self._client.call("GET", f"/api/v1/jobs/{uuid}/metrics", params=query)
        )

    def logs(self, uuid: str, **query: Any) -> dict[str, Any]:
        """Return log lines; query: after, limit, q, level."""
        given = {k: v for k, v in query.items() if v is not None}
        page: dict[str, Any] = self._client.call("GET", f"/api/v1/jobs/{uuid}/logs", params=given)
        return page

    def events(self, uuid: str) -> Any:
        """Return what happened to the job, oldest first."""
        return self._client.call("GET", f"/api/v1/jobs/{uuid}/events")

    def samples(self, uuid: str, **query: Any) -> Any:
        """Return sample completions; query: step, sort, limit."""
        return self._client.call("GET", f"/api/v1/jobs/{uuid}/samples", params=query)

    def checkpoints(self, uuid: str) -> Sequence[Checkpoint]:
        """Return the complete checkpoints."""
        rows = self._client.call("GET", f"/api/v1/jobs/{uuid}/checkpoints")
        return [Checkpoint.model_validate(row) for row in rows]

    def download(self, uuid: str, step: int, target: Path) -> int:
        """Save a checkpoint as a tar archive and return its bytes."""
        return self._client.stream_to(f"/api/v1/jobs/{uuid}/checkpoints/{step}/download", target)

    def live(self, uuid: str, since: int | None = None) -> Iterator[Frame]:
        """Yield frames until the job has ended; reconnects with the last sequence number.

        Raises ApiUnreachable when the api stays away for about two minutes, ApiError when it refuses.
        """
        last, misses = since, 0
        while True:
            query = f"?{urlencode({'since': last})}" if last is not None else ""
            base = self._client.url.replace("http", "ws", 1)
            token = self._client.token
            try:
                with connect(
                    f"{base}/api/v1/monitoring/{uuid}/live{query}",
                    additional_headers={"Authorization": f"Bearer {token}"} if token else {},
                    max_size=None,
                    open_timeout=10,
                ) as socket:
                    misses = 0
                    for text in socket:
                        frame = Frame.model_validate_json(text)
                        last = frame.seq
                        yield frame
                    return
            except InvalidStatus as error:
                if error.response.status_code < 500:
                    self.get(uuid)
                    raise ApiError(error.response.status_code, {}) from error
                misses += 1
            except ConnectionClosed as error:
                if error.rcvd is not None and error.rcvd.code == 1000:
                    return
                misses += 1
            except (OSError, TimeoutError):
                misses += 1
            if misses > RECONNECT_LIMIT:
                raise ApiUnreachable(f"The api at {self._client.url} stays away.")
            time.sleep(RECONNECT_SECONDS)

    def wait(self, uuid: str, timeout: float | None = None, poll: float = 0.5) -> Job:
        """Return the job once it has ended. Raises TimeoutError after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                job = self.get(uuid)
                if job.is_terminal:
                    return job
            except ApiUnreachable:
                if deadline is None:
                    raise
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {uuid} has not ended after {timeout:g} s")
            time.sleep(poll)


class Hosts:
    """`/api/v1/hosts/`."""

    def __init__(self, client: Client) -> None:
        """Use the connection of `client`."""
        self._client = client

    def list(self) -> list[Host]:
        """Return every host with its inventory and what runs there."""
        reply = self._client.call("GET", "/api/v1/hosts/")
        rows = reply["items"] if isinstance(reply, dict) else reply
        return [Host.model_validate(row) for row in rows]

    def drain(self, host: str, *, stop_jobs: bool = False) -> Any:
        """Start nothing new on a host; with `stop_jobs` what runs there moves elsewhere."""
        return self._client.call(
            "POST", f"/api/v1/hosts/{host}/drain", json={"stop_jobs": stop_jobs}
        )

    def undrain(self, host: str) -> Any:
        """Let a host take jobs again."""
        return self._client.call("POST", f"/api/v1/hosts/{host}/undrain")

    def join_code(self) -> dict[str, Any]:
        """Return a one-time code for `trainyard agent join URL CODE`."""
        reply: dict[str, Any] = self._client.call("POST", "/api/v1/hosts/join-codes")
        return reply

    def join(self, code: str, public_key: str, label: str) -> dict[str, Any]:
        """Exchange a one-time code and a public key for a host id and the broker's address."""
        reply: dict[str, Any] = self._client.call(
            "POST",
            "/api/v1/hosts/join",
            json={"code": code, "public_key": public_key, "label": label},
        )
        return reply


def _language() -> str:
    named = (
        os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
    )
    return "zh-CN" if named.lower().startswith("zh") else "en"


def _problem(reply: httpx2.Response) -> dict[str, Any]:
    try:
        body = reply.json()
    except ValueError:
        return {"detail": reply.text[:500]}
    return body if isinstance(body, dict) else {"detail": str(body)[:500]}
