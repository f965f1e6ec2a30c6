"""The stages of an AutoFormer search: one supernet, one search, and three ways to weights for what it found.

The best networks keep the supernet's weights, are fine-tuned from them, and are retrained from scratch; the paper's
finding is that the three barely differ (section 4.3).
"""

from nasx.pipeline.stages import Made, Maker
from recipes.autoformer.problem import AutoFormerProblem


def plan_stages(make: Maker[Made]) -> list[Made]:
    """Return the stages, in order."""
    problem = make.problem
    assert isinstance(problem, AutoFormerProblem)
    level = problem.sizes_level
    return [
        *make.level("sizes", level, retrain=False),
        *make.inherit("sizes", level),
        *make.finetune("sizes", problem.config.finetuning()),
        *make.retrain("sizes", level),
        *make.final("sizes/inherit", {"fine-tuned": "sizes/finetune", "retrained": "sizes/retrain"}),
    ]
