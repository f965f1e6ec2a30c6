"""Complete searches built on nasx's public names.

`nasx glit` runs one of them; in a checkout without installation, `python -m recipes.glit` does.
"""
