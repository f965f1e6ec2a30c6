"""The stages of a LocalViT search: one supernet, one search, retraining of the best."""

from nasx.pipeline.stages import Made, Maker
from recipes.localvit.problem import LocalViTProblem


def plan_stages(make: Maker[Made]) -> list[Made]:
    """Return the stages, in order."""
    problem = make.problem
    assert isinstance(problem, LocalViTProblem)
    return [*make.level("locality", problem.locality_level), *make.final("locality/retrain")]
