"""The values of settings as people write them on a command line, read as the type of their field asks."""

import contextlib
import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

_WORDS = {"none": None, "null": None, "true": True, "false": False}
_BRACKETS = {"[": "]", "(": ")"}


def read_value(text: str, field: FieldInfo) -> Any:
    """Return what a text means as the value of a field: the first reading that has the field's type.

    It is read as JSON, as none, true or false in any case, as a list with or without brackets where the field takes
    one, and as the text itself. Where nothing fits, validation will say so of the likeliest reading.
    """
    readings = list(_readings(text, field.annotation))
    checked: Any = Annotated[field.annotation, field]
    adapter: TypeAdapter[Any] = TypeAdapter(checked)
    for reading in readings:
        try:
            value = adapter.validate_python(reading)
        except ValidationError as error:
            if all(of_another_type(fault["type"]) for fault in error.errors()):
                continue
            return reading  # which validation refuses by its rule
        if isinstance(reading, bool) and not isinstance(value, bool):
            continue  # true is no number
        return reading
    return text if isinstance(readings[0], bool) else readings[0]


def of_another_type(fault: str) -> bool:
    """Whether one of pydantic's kinds of faults says that a value has another type, and not that it breaks a rule."""
    return fault.endswith(("_type", "_parsing")) or fault == "literal_error"


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field of this type is, or may be; None where it is a plain value."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    sections = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    return sections[0] if sections else None


def takes_list(annotation: Any) -> bool:
    """Whether a list can be a value of this type."""
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return any(map(takes_list, get_args(annotation)))
    return get_origin(annotation) in (tuple, list)


def _readings(text: str, annotation: Any) -> Iterator[Any]:
    """Yield what a text may mean, the likeliest first."""
    with contextlib.suppress(json.JSONDecodeError):
        yield json.loads(text)
    inner, bare = text.strip(), True
    if inner[:1] in _BRACKETS and inner.endswith(_BRACKETS[inner[:1]]):
        inner, bare = inner[1:-1], False
    if takes_list(annotation) and (not bare or "," in inner):
        words = [word.strip().strip("\"'") for word in inner.removesuffix(",").split(",")]
        yield [_word(word) for word in words]
        yield words
    word = text.strip().lower()
    if word in _WORDS and (_WORDS[word] is not None or type(None) in get_args(annotation)):
        yield _WORDS[word]
    yield text


def _word(word: str) -> Any:
    """Return what an element of a list means."""
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word
