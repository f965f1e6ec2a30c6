"""Files that appear whole or not at all."""

import tempfile
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file aside in its directory and rename it into place."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as aside:
        aside.write(data)
    Path(aside.name).chmod(0o644)
    Path(aside.name).replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 in the same way."""
    write_bytes(path, text.encode())
