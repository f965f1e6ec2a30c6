"""What the recipes' command lines share: `--set`, presets, one clear message for bad input, exit statuses.

Exit status: 0 done, 1 a check failed, or a bug with its traceback, 2 bad input, 75 interrupted and resumable
(EX_TEMPFAIL).
"""

import difflib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 75

_LISTED = 30  # known words that a message lists

Config = TypeVar("Config", bound=BaseModel)


class BadInput(Exception):
    """What the user asked for cannot be done; the message says what was met, the rule, and what to do."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Turn the errors by which libraries refuse their arguments into `BadInput`; for use before work starts."""
    try:
        yield
    except ValidationError as error:
        raise BadInput(validation_message(error)) from error
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise BadInput(str(error)) from error


def run_command(command: Callable[[], int]) -> int:
    """Run a command and return its exit status; bad input prints its message alone, on standard error.

    A command whose output nobody reads any more, as in `plan | head`, ends quietly. Pillow's warning of images with
    too many pixels, which nasx refuses itself, is not shown.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Image size \(\d+ pixels\) exceeds limit")
            status = command()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter fails when it flushes
        return DONE
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def print_json(document: Any) -> None:
    """Write one JSON document to standard output."""
    print(json.dumps(document, indent=1, allow_nan=False))


def nearest(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean ...?" with the nearest known word, or some of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(known) - _LISTED:,} more" if len(known) > _LISTED else ""
    return f"; known are {', '.join(known[:_LISTED])}{more}"


def pick(name: str, known: Mapping[str, Any], what: str) -> Any:
    """Return the entry of a name; BadInput with the nearest name where there is none."""
    if name not in known:
        raise BadInput(f"there is no {what} {name!r}{nearest(name, list(known))}")
    return known[name]


def check_counts(counts: Mapping[str, int]) -> None:
    """Refuse options that count something and are below 1, by their names."""
    for option, count in counts.items():
        if count < 1:
            raise BadInput(f"{option} is at least 1, but got {count}; write a larger number")


def apply_settings(config: Config, settings: Sequence[str]) -> Config:
    """Return a config with `section.field=value` settings applied and validated.

    Values are read as JSON where they parse as such (`[3, 5]`, `1e-3`, `true`, `null`), else as text; `3,5` and `(3,5)`
    are lists too.
    """
    # only what is set: what is left open may be fitted to the data
    plain, fields = config.model_dump(exclude_unset=True), field_names(config)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise BadInput(f"a setting is written section.field=value, but got {setting!r}")
        *sections, field = path.split(".")
        for i in range(1, len(sections) + 1):
            section = ".".join(sections[:i])
            if not any(known.startswith(f"{section}.") for known in fields):
                raise BadInput(f"there is no section {section!r}{nearest(path, fields)}")
        if path not in fields:
            raise BadInput(f"there is no field {path!r}{nearest(path, fields)}")
        node: dict[str, Any] = plain
        for section in sections:
            node = node.setdefault(section, {})
        node[field] = _value(text)
    with bad_input():
        return type(config).model_validate(plain)


def _value(text: str) -> Any:
    """Return what a setting's text means."""
    listed = text[1:-1] if text.startswith("(") and text.endswith(")") else text
    for written in (text, f"[{listed.removesuffix(',')}]" if "," in listed else text):
        try:
            return json.loads(written)
        except json.JSONDecodeError:
            continue
    return text


def field_names(section: BaseModel, prefix: str = "") -> list[str]:
    """Return the names of all fields; one whose value is a mapping is a field, and no section."""
    found = []
    for key, value in section:
        found.extend(field_names(value, f"{prefix}{key}.") if isinstance(value, BaseModel) else [prefix + key])
    return found


def validation_message(error: ValidationError) -> str:
    """Return what pydantic refused in one line: each field by its name, the rule, and the value met."""
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"]) or "the configuration"
        message = fault["msg"].removeprefix("Value error, ")
        if where and message.startswith(f"{where}."):  # a rule of a section, which names the field itself
            lines.append(message)
            continue
        # a rule of a whole section says itself which of its values it met
        lines.append(
            f"{where}: {message}" + ("" if isinstance(fault["input"], dict) else f", but got {fault['input']!r}")
        )
    return "; ".join(lines)
