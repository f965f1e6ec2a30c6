"""Contract suites that spaces, costs, supernets, searchers and recipes from anywhere can inherit.

Each is a plain class of pytest tests: a subclass named `Test...` says what is to be tested, and inherits the rest.

Examples:
    >>> class TestMySpace(SpaceContract):
    ...     space = MY_SPACE

Nothing here imports pytest.
"""

from nasx.testing.recipes import RecipeContract
from nasx.testing.searchers import SearcherContract
from nasx.testing.spaces import CostContract, SpaceContract
from nasx.testing.supernets import SupernetContract

__all__ = ["CostContract", "RecipeContract", "SearcherContract", "SpaceContract", "SupernetContract"]
