"""Group self-play preference optimisation: the candidates of a prompt compete, and whole sequences are weighed.

The importance ratio is one a sequence, normalised by its length (GSPO, arXiv 2507.18071, equations 5-7); with
`loss_type` grpo each sequence counts alike, as there. What candidates compete by is the reward: `self_play` by majority
(TTRL, arXiv 2504.16084) or in duels.

Advantages are scaled by the spread of the whole step, not of each group (arXiv 2508.08221, section 4.1). Within a group that
is all wrong the vote alone tells candidates apart; scaled to one it would weigh as much there as right answers do
elsewhere, and the policy would come to agree with itself on wrong ones.
"""

from __future__ import annotations

from services.gpu_agent.trainers import group_trainer
from services.gpu_agent.trainers.context import TrainContext


def run(context: TrainContext) -> None:
    """Train as the spec says; returns when the run is over or was asked to stop. Raises what ends it badly.

    The ratio is bounded by `clip_ratio`, as in every algorithm here. The paper's bounds (3e-4 below, 4e-4 above) are for
    several updates a rollout; here each rollout is learned from once, so that the ratio is 1 and no bound is met: a
    job's resolved parameters do not tell a given 0.2 from the default one, and nothing hangs on it.
    """
    group_trainer.run(
        context, importance_sampling_level="sequence", loss_type="grpo", scale_rewards="batch"
    )
