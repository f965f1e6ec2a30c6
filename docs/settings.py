"""Writes docs/settings.md from the settings themselves: `python docs/settings.py`; with `--print`, prints it."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nasx.pipeline.config import Augmentation, RunConfig  # noqa: E402
from nasx.pipeline.machine import PREFIX, Machine  # noqa: E402
from nasx.pipeline.recipe import recipe_module, recipe_names  # noqa: E402

PAGE = Path(__file__).with_name("settings.md")

INTRODUCTION = """\
# Settings

<!-- Written by docs/settings.py: change the descriptions of the fields, not this page. -->

A run's settings are one typed value in sections. On the command line, `--set section.field=value` changes a field of
the preset, and `plan` prints every field with its value:

```bash
python -m recipes.glit plan --no-timing --set search.population=30 --set retrain.epochs=50
```

Values are written like this, and also as `plan` prints them (`None`, `[False, True]`). Where the shell would read
brackets, quotes or spaces itself, put the whole setting in single quotes.

| value | as in |
|---|---|
| number | `retrain.lr=1e-3` |
| true, false, or none | `retrain.refit=true`, `retrain.clip_norm=none` |
| text | `retrain.augment.auto_augment=rand-m9` |
| list | `space.kernel_size=3,5`, `space.kernel_size=[3]` |
| mapping, as JSON | `search.mutation_probability={"*": 0.1, "block.*.*": 0.4}` |
| several fields of a section, as JSON | `retrain.augment={"flip": true, "erase": 0.25}` |

From Python they are a `RunConfig`, whose sections may be written as mappings:

```python
from nasx.pipeline import RunConfig

config = RunConfig(search={"population": 30}, retrain={"epochs": 50})
```

Batch sizes, epochs, warm-up and learning rate are fitted to your data where you leave them open; the run records what
was used. The tables list the fields of all recipes first, then those of each recipe. "none" as a default means that
nothing is set. Accuracies and probabilities are shares between 0 and 1.
"""


def page() -> str:
    """Return the page."""
    parts = [INTRODUCTION, *_sections(RunConfig, None)]
    parts.append("## `augment`\n")
    parts.append("The fields of `supernet.augment` and `retrain.augment`, such as `retrain.augment.flip`:\n")
    parts.append(
        _table([(f"augment.{name}", field) for name, field in Augmentation.model_fields.items()], Augmentation)
    )
    for name in recipe_names():
        config = recipe_module(name, "config").Config
        parts.append(f"## Recipe {name}\n")
        presets = ", ".join(f"`{preset}`" for preset in recipe_module(name, "config").PRESETS)
        parts.append(f"Its presets: {presets}.\n")
        parts.extend(_sections(config, RunConfig))
    parts.append("## The machine\n")
    parts.append(
        "Settings of the machine come from environment variables, or from `run(..., machine=Machine(...))`. None of "
        "them changes a result on the CPU.\n"
    )
    parts.append(_table([(f"{PREFIX}{name.upper()}", field) for name, field in Machine.model_fields.items()], Machine))
    return "\n".join(parts)


def _sections(config: type[RunConfig], shared: type[RunConfig] | None) -> Iterator[str]:
    """Yield the tables of a configuration; of a recipe, those of its own fields."""
    plain = {n: f for n, f in config.model_fields.items() if not _is_section(f) and not _same(n, f, shared)}
    if plain:
        if shared is None:
            yield "## The run\n"
        yield _table(list(plain.items()), config)
    for name, field in config.model_fields.items():
        if _is_section(field) and not _same(name, field, shared):
            yield f"{'##' if shared is None else '###'} `{name}`\n"
            known = _fields(shared.model_fields[name]) if shared and name in shared.model_fields else {}
            own = {n: f for n, f in _fields(field).items() if n not in known or known[n].default != f.default}
            yield _table([(f"{name}.{n}", f) for n, f in own.items()], config)


def _fields(field: FieldInfo) -> dict[str, FieldInfo]:
    section = field.annotation
    assert isinstance(section, type)
    assert issubclass(section, BaseModel)
    return section.model_fields


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _same(name: str, field: FieldInfo, shared: type[RunConfig] | None) -> bool:
    return (
        shared is not None and name in shared.model_fields and shared.model_fields[name].annotation is field.annotation
    )


def _table(fields: list[tuple[str, FieldInfo]], section: type[BaseModel]) -> str:
    rows = ["| field | default | values | meaning |", "|---|---|---|---|"]
    for name, field in fields:
        if not field.description:
            raise ValueError(f"{section.__module__}.{section.__name__}.{name.rpartition('.')[2]} needs a description")
        rows.append(f"| `{name}` | {_default(field)} | {_values(field)} | {_cell(field.description)} |")
    return "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "see [below](#augment)"
    return "none" if value is None else f"`{_written(value)}`"


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(field: FieldInfo) -> str:
    bounds = [bound for item in field.metadata if (bound := _bound(item))]
    return _cell(", ".join([_type(field.annotation), *bounds]))


def _bound(item: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = [f"{sign} {getattr(item, name):g}" for name, sign in signs.items() if getattr(item, name, None) is not None]
    if isinstance(item, FieldInfo):
        found += [bound for inner in item.metadata if (bound := _bound(inner))]
    return " and ".join(found)


def _type(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is Annotated:
        bounds = [bound for item in inner[1:] if (bound := _bound(item))]
        return " ".join([_type(inner[0]), *bounds])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in inner if part is not type(None)))
    if origin is tuple:
        parts = [_type(part) for part in inner if part is not Ellipsis]
        return f"list of {parts[0]}" if Ellipsis in inner else f"{len(parts)} of {parts[0]}"
    if origin is dict:
        return f"mapping from pattern to {_type(inner[1])}"
    if kind is Augmentation:
        return "fields of [`augment`](#augment)"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "name or object"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("None:", "none:")


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page(), encoding="utf-8")
