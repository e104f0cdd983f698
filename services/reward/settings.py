"""Settings of the reward service (environment prefix TRAINYARD_, those of PRODUCT section 10 included)."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class RewardSettings(Settings):
    """Read once in main; everything else gets it passed in."""

    reward_host: str = "127.0.0.1"
    """Address that the service binds; anything but loopback needs TRAINYARD_API_TOKEN."""
    reward_rules_only: bool = False
    """Beside a trainer: rules and reward models of this host; no judges, no database, no broker."""
    reward_idle_exit_seconds: float | None = Field(default=None, gt=0)
    """End by itself after so long without any request; None: never."""
    reward_verifiers: int = Field(default=1, ge=1, le=64)
    """Processes for computer algebra."""
    reward_item_seconds: float = Field(default=5.0, gt=0, le=600)
    """The most work for one item of a rule, in seconds."""
    reward_model_device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d{1,3})?)$")
    """Where local reward models run: `cpu`, or `cuda:1` for a GPU that no job holds; jobs know nothing of it."""
    reward_queue: int = Field(default=20_000, ge=1)
    """Items that may wait and run at the same time; beyond them a request is answered with 429."""
    reward_allow_http_hosts: str = ""
    """Comma-separated hosts that a provider may have by http or within this network, such as a vLLM of your own."""
    allowed_hosts: str = ""
    """Comma-separated names by which this service may be reached, such as `reward`."""

    @property
    def reward_is_loopback(self) -> bool:
        """Tell whether only this machine can reach the service."""
        return self.reward_host in {"127.0.0.1", "localhost", "::1"}

    @property
    def provider_hosts(self) -> frozenset[str]:
        """Return the hosts for which an administrator has lifted the rules on addresses."""
        named = self.reward_allow_http_hosts.split(",")
        return frozenset(n.strip().lower() for n in named if n.strip())

    @property
    def host_names(self) -> frozenset[str]:
        """Return the names that a Host header may bear; addresses are always allowed."""
        named = {n.strip().lower() for n in self.allowed_hosts.split(",") if n.strip()}
        return frozenset({"localhost", "reward", *named})
