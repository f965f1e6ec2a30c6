"""What all messages of the code have in common, whoever raises them."""

import re

from tests.messages import ROOT, Message, messages, of_source

MESSAGES = messages()
NAMES = {"ONNX", "BatchNorm"}
"""Words that begin a message and have a capital letter anywhere."""

SETTINGS = "data|supernet|search|trust|retrain|finetune|model|space|budget"


def ids(message: Message) -> str:
    return f"{message.path.relative_to(ROOT)}:{message.line}"


def test_the_list_is_whole() -> None:
    raised = sum(
        len(re.findall(r"^\s*raise \w+\(\s*f?[\"'`]", path.read_text(encoding="utf-8"), re.MULTILINE))
        for folder in ("nasx", "recipes")
        for path in (ROOT / folder).rglob("*.py")
    )
    assert len(MESSAGES) >= raised > 400
    spelled = 'def f(x):\n    raise ValueError(f"x is {x:,}, " "but" + " no")\n'
    assert [found.text for found in of_source(ROOT, spelled)] == ["x is {x}, but no"]


def test_messages_are_clauses_that_others_can_be_appended_to() -> None:
    for message in MESSAGES:
        assert not message.text.endswith((".", "!")), message
        assert "\n" not in message.text, message
        first = message.text.split()[0].strip("'`")
        assert not first[:1].isupper() or first in NAMES, message


def test_settings_in_messages_are_settings() -> None:
    """What looks like a setting exists in some recipe, so that nobody looks for one that was renamed."""
    from importlib import import_module

    from nasx.cli import field_names

    known = {
        name
        for recipe in ("glit", "autoformer", "localvit")
        for name in field_names(import_module(f"recipes.{recipe}.config").PRESETS["digits"])
    }
    named = {
        (found.group(1), ids(message))
        for message in MESSAGES
        for found in re.finditer(rf"(?<![\w.{{/])((?:{SETTINGS})\.[a-z_]+)(?![\w.({{])", message.text)
    }
    assert named
    files = {"model.safetensors"}
    unknown = {(name, where) for name, where in named if name not in known | files}
    assert not unknown
