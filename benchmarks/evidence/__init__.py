"""Measurements of how well searches find: what docs/evidence.md shows, from experiments to its tables.

`python -m benchmarks.evidence` lists the experiments. Each leaves one JSON file per training in a folder, so that it
goes on wherever it was stopped; `collect` packs them into `data/`, and `page` writes the tables of docs/evidence.md.
"""
