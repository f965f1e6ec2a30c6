"""Settings of the machine in environment variables."""

import pytest

from nasx.pipeline import Machine


def test_variables_are_settings_and_others_keep_their_defaults() -> None:
    found = Machine.from_environment({"NASX_WORKERS": "3", "NASX_DETERMINISTIC": "true", "HOME": "/root"})
    assert found == Machine(workers=3, deterministic=True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NASX_WORKERS", "-1", r"^NASX_WORKERS: Input should be greater than or equal to 0, but got '-1'$"),
        ("NASX_PROCESSES", "two", r"^NASX_PROCESSES: Input should be a valid integer, but got 'two'$"),
        ("NASX_DETERMINISTIC", "maybe", r"^NASX_DETERMINISTIC: Input should be a valid boolean, but got 'maybe'$"),
        ("NASX_FOO", "1", r"^there is no setting NASX_FOO of the machine; there are NASX_DEVICE, NASX_PROCESSES, "),
        ("NASX_workers", "1", r"^there is no setting NASX_workers of the machine; there are .*NASX_WORKERS"),
    ],
)
def test_a_variable_that_cannot_be_is_named(name: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Machine.from_environment({name: value, "NASX_DEVICE": "cpu"})
    assert type(caught.value) is ValueError, "in words, where Python shows it too"
