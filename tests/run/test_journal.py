import json
import os
from pathlib import Path

import pytest

from nasx.run import Journal, JournalDamaged

RECORDS = [{"event": "done", "n": n, "text": "ä\n\r\u2028", "x": 0.1 * n, "deep": [{"a": None}]} for n in range(6)]


def filled(path: Path, identity: str = "") -> Journal:
    journal = Journal(path, identity=identity)
    for record in RECORDS:
        journal.append(record)
    return journal


def test_records_come_back_in_order_and_each_line_is_json(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j")
    assert list(journal) == list(Journal(tmp_path / "j")) == RECORDS
    assert len(journal) == len(RECORDS)
    assert [json.loads(line)["record"] for line in (tmp_path / "j").read_text().splitlines()] == RECORDS


def test_a_reader_cannot_change_the_records(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j")
    next(iter(journal))["n"] = 99
    assert list(journal) == RECORDS


def test_reading_creates_no_file(tmp_path: Path) -> None:
    assert list(Journal(tmp_path / "j")) == []
    assert not (tmp_path / "j").exists()


def test_a_record_that_json_cannot_hold_changes_nothing(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j")
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append({"x": float("inf")})
    with pytest.raises(TypeError):
        journal.append({"x": object()})
    journal.append({"n": 6})
    assert list(Journal(tmp_path / "j")) == [*RECORDS, {"n": 6}]


def test_a_torn_last_line_is_cut_wherever_it_was_torn_and_appending_goes_on(tmp_path: Path) -> None:
    whole = filled(tmp_path / "j").path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        (tmp_path / "j").write_bytes(whole[:end])
        journal = Journal(tmp_path / "j")
        assert list(journal) == RECORDS[:-1]
        assert (tmp_path / "j").read_bytes() == whole[:start]
        journal.append(RECORDS[-1])
        assert (tmp_path / "j").read_bytes() == whole


def test_a_last_line_of_which_the_disk_kept_the_length_only_is_cut(tmp_path: Path) -> None:
    whole = filled(tmp_path / "j").path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for garbage in (b"\0" * 50, b"\0" * 49 + b"\n", b"\xff\r\x85" * 9):
        (tmp_path / "j").write_bytes(whole[:start] + garbage)
        assert list(Journal(tmp_path / "j")) == RECORDS[:-1]


def test_damage_elsewhere_is_refused_with_its_line_and_kept(tmp_path: Path) -> None:
    lines = filled(tmp_path / "j").path.read_bytes().splitlines(keepends=True)
    damaged = {
        3: [*lines[:2], lines[2].replace(b'"n":2', b'"n":7'), *lines[3:]],  # changed
        2: [lines[0], *lines[2:]],  # lost
        4: [*lines[:3], lines[4], lines[3], lines[5]],  # moved
        6: [*lines[:5], lines[5].replace(b'"n":5', b'"n":7')],  # the last one, but not torn
        5: [*lines[:4], lines[3], *lines[4:]],  # repeated
        1: lines[1:],
    }
    for number, content in damaged.items():
        (tmp_path / "j").write_bytes(b"".join(content))
        with pytest.raises(JournalDamaged, match=f"line {number} of "):
            Journal(tmp_path / "j")
        assert (tmp_path / "j").read_bytes() == b"".join(content)


@pytest.mark.parametrize("records", [1, 6])
def test_another_stages_journal_is_refused(tmp_path: Path, records: int) -> None:
    journal = Journal(tmp_path / "j", identity="heads/search")
    for record in RECORDS[:records]:
        journal.append(record)
    assert list(Journal(tmp_path / "j", identity="heads/search")) == RECORDS[:records]
    with pytest.raises(JournalDamaged, match="line 1 of "):
        Journal(tmp_path / "j", identity="details/search")


def test_a_second_writer_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    first, second = filled(tmp_path / "j"), Journal(tmp_path / "j")
    first.append({"n": 6})
    with pytest.raises(JournalDamaged, match="something else wrote"):
        second.append({"n": 7})
    assert list(Journal(tmp_path / "j")) == [*RECORDS, {"n": 6}]


def test_a_link_or_a_pipe_is_no_journal_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one line that would be cut as torn")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(JournalDamaged, match="not a plain file"):
            Journal(tmp_path / name)
    assert (tmp_path / "secret").read_text() == "one line that would be cut as torn"
    (tmp_path / "later").symlink_to(tmp_path / "absent")
    with pytest.raises(JournalDamaged, match="not a plain file"):
        Journal(tmp_path / "later")
    journal = Journal(tmp_path / "j")
    (tmp_path / "j").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match=str(tmp_path / "j")):
        journal.append({})
    assert (tmp_path / "secret").read_text() == "one line that would be cut as torn"
