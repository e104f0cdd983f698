"""Talks to the reward service: used by the command line, and by programs that want scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import httpx2

from shared.rewards.scores import ScoreResponse
from shared.settings import Settings
from trainyard.client import ApiError, ApiUnreachable


def reward_url(settings: Settings) -> str:
    """Return TRAINYARD_REWARD_URL, else the address that the service of this home wrote, else the configured port."""
    if settings.reward_url:
        return settings.reward_url.rstrip("/")
    try:
        return str(json.loads((settings.home / "run" / "reward.json").read_text())["url"])
    except (OSError, ValueError, KeyError):
        return f"http://127.0.0.1:{settings.reward_port}"


class RewardClient:
    """Raises ApiError for refusals and ApiUnreachable when nothing answers."""

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        settings = Settings()
        self.url = url or reward_url(settings)
        given = token or settings.api_token
        headers = {"Authorization": f"Bearer {given}"} if given else {}
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=300, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def score(
        self,
        reward: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any] | None = None,
    ) -> ScoreResponse:
        """Score a batch: one result for each item, in order, `reward` null where there is no verdict."""
        body = {"reward": dict(reward), "items": list(items), "options": dict(options or {})}
        return ScoreResponse.model_validate(self.call("POST", "/v1/score", body))

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Call any route and return its JSON."""
        try:
            answer = self._http.request(method, path, json=None if body is None else dict(body))
        except httpx2.TransportError as error:
            raise ApiUnreachable(
                f"The reward service does not answer at {self.url} ({type(error).__name__}). Start it with `trainyard up`, "
                "or set TRAINYARD_REWARD_URL."
            ) from error
        if answer.status_code >= 400:
            try:
                problem = answer.json()
            except ValueError:
                problem = {"title": f"HTTP {answer.status_code}"}
            raise ApiError(answer.status_code, problem)
        return answer.json() if answer.content else None
