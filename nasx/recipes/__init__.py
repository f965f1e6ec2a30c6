"""Where a checkout finds `nasx.recipes`: in its folder `recipes`, whose files wheels carry at this place."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "recipes")]
