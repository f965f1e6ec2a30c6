"""Lines of verse and prose that ship with the library: a small real text for examples."""

from importlib.resources import files

VERSE, PROSE = 0, 1


def load_lines() -> tuple[list[str], list[int]]:
    """Return lines of text, verse and prose in turn, and for each whether it is verse (0) or prose (1).

    The verse is five of Shakespeare's sonnets (18, 29, 73, 116, 130), the prose the beginning of the Declaration of
    Independence, the Gettysburg Address and the preamble of the Constitution of the United States; all are in the
    public domain.
    """
    verse, prose = ((files("nasx.data") / name).read_text(encoding="utf-8").splitlines() for name in _FILES)
    paired = [line for pair in zip(verse, prose, strict=False) for line in pair]
    return paired, [VERSE, PROSE] * (len(paired) // 2)


_FILES = ("verse.txt", "prose.txt")
