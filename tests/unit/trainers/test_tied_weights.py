"""What a checkpoint lacks is told from the second name of a weight that it has."""

from __future__ import annotations

from torch import nn

from services.gpu_agent.trainers.saving import without_tied


class Model(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embed, self.lm_head, self.norm = (nn.Linear(2, 2, bias=False) for _ in range(3))
        if tied:
            self.lm_head.weight = self.embed.weight


class Whole(nn.Module):
    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy


def test_only_what_no_other_name_holds_is_missing() -> None:
    tied, apart = Model(tied=True), Model(tied=False)
    assert without_tied(tied, ["lm_head.weight", "norm.weight"]) == ["norm.weight"]
    assert without_tied(tied, ["lm_head.weight", "embed.weight"]) == [
        "lm_head.weight",
        "embed.weight",
    ]
    assert without_tied(apart, ["lm_head.weight"]) == ["lm_head.weight"]
    assert without_tied(tied, ["unknown"]) == ["unknown"]
    assert without_tied(Whole(tied), ["lm_head.weight"]) == []
    assert without_tied(Whole(apart), ["lm_head.weight"]) == ["lm_head.weight"]
