"""A tabular benchmark: many small GLiT networks, each trained alone on CIFAR-10 with several seeds.

`table()` reads the results, which come with the recipe; `python -m recipes.glit.bench run` makes them again. See
`CARD.md` beside this file for how they were made and what they can show.
"""

from .table import Row, Table, table

__all__ = ["Row", "Table", "table"]
