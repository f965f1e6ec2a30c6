"""Every field of every recipe's settings changes what a run does, and what is refused is refused by its name."""

import importlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from nasx.cli import BadInput, _paths, apply_settings
from nasx.pipeline.images import ImageSource, load_images
from nasx.pipeline.machine import Machine
from nasx.pipeline.progress import silent
from nasx.pipeline.runner import run
from tests.recipes.test_full_size import NAMES  # noqa: F401 - placeholder
