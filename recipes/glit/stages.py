"""The stages of a GLiT search (paper, section 3.3 and figure 4).

hierarchical: supernet, search and retraining over the heads, then the same over the details of the winner's heads.
spos: the same once over the joint space, its supernet trained twice as long (table 5). random: retraining alone, of
networks drawn from the budget. Then, for all methods, the two comparison networks and the final evaluation.
"""

from nasx.pipeline.stages import Made, Maker
from recipes.glit.problem import GLiTProblem


def plan_stages(make: Maker[Made]) -> list[Made]:
    """Return the stages of the configured method, in order."""
    problem = make.problem
    assert isinstance(problem, GLiTProblem)
    match problem.config.method:
        case "hierarchical":
            heads = make.level("heads", problem.heads_level)
            last, stages = (
                "details/retrain",
                [*heads, *make.level("details", problem.details_level, needs=("heads/retrain",))],
            )
        case "spos":
            last, stages = "joint/retrain", make.level("joint", problem.joint_level, epochs_factor=2)
        case "random":
            last, stages = "random/retrain", make.random()
    return [*stages, *make.final(last)]
