"""Complete searches built on nasx's public names, run from a checkout: `python -m recipes.glit`."""
