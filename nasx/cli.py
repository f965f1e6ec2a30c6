"""What the recipes' command lines share: `--set`, presets, one clear message for bad input, exit statuses.

Exit status: 0 done, 1 a check failed, or a bug with its traceback, 2 bad input, 75 interrupted and resumable
(EX_TEMPFAIL).
"""

import difflib
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nasx._written import of_another_type, read_value, section_of

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
    except OSError as error:
        raise BadInput(system_message(error)) from error
    except (ValueError, TypeError, ImportError) as error:
        raise BadInput(str(error)) from error


def system_message(error: OSError) -> str:
    """Return what the operating system refused, and the mend; the message of an error that has one of its own."""
    if error.filename is None or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}; choose another path"


def run_command(command: Callable[[], int]) -> int:
    """Run a command and return its exit status; bad input prints its message alone, on standard error.

    A command whose output nobody reads any more, as in `plan | head`, ends quietly. Pillow's warning of images with
    too many pixels, which nasx refuses itself, is not shown. Names of files that are no UTF-8 are printed as escapes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
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

    Values are read as `docs/settings.md` says: JSON (`1e-3`, `[3, 5]`), words (`none`, `true`, `relu6`), lists without
    brackets (`3,5`). A section takes a JSON object, whose fields are set one by one.
    """
    # only what is set: what is left open may be fitted to the data
    plain, fields = config.model_dump(exclude_unset=True), _fields(type(config))
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise BadInput(f"a setting is written section.field=value, but got {setting!r}")
        for name, value in _field_values(path, text, fields):
            *sections, last = name.split(".")
            node: dict[str, Any] = plain
            for section in sections:
                if not isinstance(node.get(section), dict):
                    node[section] = {}
                node = node[section]
            node[last] = value
    with bad_input():
        return type(config).model_validate(plain)


def _field_values(path: str, text: str, fields: Mapping[str, FieldInfo]) -> Iterator[tuple[str, Any]]:
    """Yield the fields that a setting is about, with their values; BadInput where it names none."""
    below = f"{path}."
    if path in fields:
        yield path, read_value(text, fields[path])
        return
    if not any(known.startswith(below) for known in fields):
        parts = path.split(".")
        for section in (".".join(parts[:i]) for i in range(1, len(parts))):
            if section in fields and section_of(fields[section].annotation) is None:
                raise BadInput(f"there is no section {section!r}, which is a field; write {section}=VALUE")
            if not any(known.startswith(f"{section}.") for known in fields):
                raise BadInput(f"there is no section {section!r}{nearest(path, list(fields))}")
        raise BadInput(f"there is no field {path!r}{nearest(path, list(fields))}")
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        values = None
    if not isinstance(values, dict):
        example = next(known for known in fields if known.startswith(below))
        raise BadInput(
            f"{path} is a section of settings, but got {text!r}; set its fields, such as {example}=VALUE, or write a "
            'JSON object, such as {"field": value}'
        )
    for name, value in values.items():
        yield from _field_values(f"{below}{name}", json.dumps(value), fields)


def _fields(section: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Return all fields by their paths; a section that may be left out is a field, and has fields."""
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not field.annotation:
            found[prefix + name] = field
        if inner is not None:
            found |= _fields(inner, f"{prefix}{name}.")
    return found


def field_names(section: BaseModel, prefix: str = "") -> list[str]:
    """Return the names of all fields; one whose value is a mapping is a field, and no section."""
    found = []
    for key, value in section:
        found.extend(field_names(value, f"{prefix}{key}.") if isinstance(value, BaseModel) else [prefix + key])
    return found


def validation_message(error: ValidationError, config: type[BaseModel] | None = None) -> str:
    """Return what pydantic refused in one line: each field by its name, the rule, and the value met.

    For a field that `config` does not have, it is the nearest that it has.
    """
    faults: dict[str, list[Any]] = {}
    for fault in error.errors():
        path = [str(part) for part in fault["loc"] if not _OF_UNION.match(str(part))]
        faults.setdefault(".".join(path), []).append(fault)
    return "; ".join(
        _refusal(where, refused) if config is None or not _is_unknown(refused) else _no_field(where, config)
        for where, refused in faults.items()
        if not any(inner.startswith(f"{where}.") for inner in faults)  # which is what is wrong with the whole
    )


def _is_unknown(faults: Sequence[Any]) -> bool:
    return all(fault["type"] == "extra_forbidden" for fault in faults)


def _no_field(where: str, config: type[BaseModel]) -> str:
    fields = list(_fields(config))
    sections = dict.fromkeys(section for field in fields if (section := field.rpartition(".")[0]))
    return f"there is no field {where!r}{nearest(where, [*sections, *fields])}"


def _refusal(where: str, faults: Sequence[Any]) -> str:
    """Return what is wrong with one field, of which each type that it may have says something."""
    # a value of one of the types breaks a rule of that type
    of_its_type = [fault for fault in faults if not of_another_type(fault["type"])]
    rules = list(dict.fromkeys(map(_in_words, of_its_type or faults)))
    if _NUMBER in rules:
        rules = [rule for rule in rules if rule != _INTEGER]
    message = " or ".join([rules[0], *(rule.removeprefix("Input should be ") for rule in rules[1:])])
    if not where or message.startswith((f"{where}.", f"{where} ")):  # a rule that names the fields itself
        return message
    # a rule of a whole section, and some others, say themselves which values they met
    met = faults[0]["input"]
    says_itself = isinstance(met, dict) or "but got" in message
    return f"{where}: {message}" + ("" if says_itself else f", but got {met!r}")


def _in_words(fault: Any) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ")
    for of_python, plain in _PLAIN_WORDS.items():
        message = re.sub(of_python, plain, message)
    return message


_OF_UNION = re.compile(
    r"(bool|int|float|str|none)$|(constrained|nullable|literal|function|dict|tuple|list|lax)\b.*[-\[]"
)
"""Parts of pydantic's paths that name one of a field's types, and no field."""

_INTEGER, _NUMBER = "Input should be a valid integer", "Input should be a valid number"

_PLAIN_WORDS = {
    r"tuple": "list",
    r"Tuple": "List",
    r"dictionary": "mapping",
    r" or instance of \w+": "",
    r", (unable to|got a number with) .*": "",
    r"Extra inputs are not permitted": "there is no such field",
    r"Field required": "a value is missing",
}
