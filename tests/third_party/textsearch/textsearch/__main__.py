"""The search: `python -m textsearch RUN` searches inside a budget, or continues the search in the directory."""

import json
import sys

import nasx
from nasx import Budget
from nasx.measure import counted
from nasx.pipeline import Problem, RunConfig, Task, run
from nasx.pipeline.config import Retraining, Search, SupernetTraining

from .data import collate, snippets
from .network import TEXT, TextTransformer

CONFIG = RunConfig(
    supernet=SupernetTraining(epochs=4, batch_size=64, lr=5e-3, optimizer="adamw"),
    search=Search(population=8, generations=3, parents=3, top_k=2),
    retrain=Retraining(epochs=4, batch_size=64, lr=5e-3),
)

if __name__ == "__main__":
    task = Task(snippets(), test=snippets(held_out=True), collate_fn=collate)
    budget = Budget(counted("params", TextTransformer, TEXT, None), at_most="85%")
    found = run(Problem(TEXT, TextTransformer, task, budget=budget, config=CONFIG), sys.argv[1])
    print(json.dumps({"nasx": nasx.__file__, "arch": dict(found.arch), **found.summary}))
