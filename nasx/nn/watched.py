"""Which choices a builder reads: those that it does not read make no difference to its networks."""

import logging

from torch import nn

from nasx.arch import Arch, Value, matches
from nasx.space import Space, name_patterns

logger = logging.getLogger(__name__)


class Reads:
    """What builders have read of architectures."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        """Entries that were read, by name."""
        self.missing: dict[str, None] = {}
        """Repeated parts that were asked for and that no architecture had, in order."""
        self.active: set[str] = set()
        """All entries that there were."""

    def watch(self, arch: Arch) -> "WatchedArch":
        """Return the same architecture for a builder; what it reads is noted."""
        self.active |= set(arch)
        return WatchedArch(arch, self)

    def note_kept(self, network: nn.Module) -> None:
        """Take architectures that modules keep for read, for they may be when the network runs."""
        for module in network.modules():
            for value in vars(module).values():
                if isinstance(value, WatchedArch):
                    value.note_all()

    def unread(self, space: Space) -> list[str]:
        """Return the names of choices, with `*` for numbers, that no builder read although there were some."""
        varied = [(name, choice) for name, choice in space.walk() if len(choice.values) > 1]
        return [
            pattern
            for pattern in name_patterns(varied)
            if any(matches(pattern, name) for name in self.active)
            and not any(matches(pattern, name) for name in self.names)
        ]


class WatchedArch(Arch):
    """An architecture, or a part of one, that notes which of its entries are read."""

    __slots__ = ("_plain", "_prefix", "_reads")

    def __init__(self, plain: Arch, reads: Reads, prefix: str = "") -> None:
        self._set(None, ())
        self._plain, self._reads, self._prefix = plain, reads, prefix

    @property
    def _items(self) -> dict[str, Value]:
        self.note_all()  # comparing, hashing, printing, iterating: all that takes more than one entry
        return self._plain._items

    def note_all(self) -> None:
        """Note that all entries were read."""
        self._reads.names.update(f"{self._prefix}{name}" for name in self._plain)

    def __getitem__(self, name: str) -> Value:
        self._reads.names.add(f"{self._prefix}{name}")
        return self._plain[name]

    def __contains__(self, name: object) -> bool:
        self._reads.names.add(f"{self._prefix}{name}")
        return name in self._plain

    def at(self, prefix: str) -> Arch:
        """Return the entries below a prefix, watched too."""
        return WatchedArch(self._plain.at(prefix), self._reads, f"{self._prefix}{prefix}.")

    def parts(self, name: str, count: int | None = None) -> list[Arch]:
        """Return the repeated parts, watched too; that reads how many there are."""
        found = self._plain.parts(name, count)
        self._reads.names.add(f"{self._prefix}{name}.count")
        if not found:
            self._reads.missing[f"{self._prefix}{name}"] = None
        return [WatchedArch(part, self._reads, f"{self._prefix}{name}.{i}.") for i, part in enumerate(found)]


def warn_of_unread(reads: Reads, space: Space) -> None:
    """Say which choices the builder does not read, such as those of a repeat that it calls by another name."""
    unread = reads.unread(space)
    if unread:
        names = [name for name in reads.missing if not any(n.startswith(f"{name}.") for n in reads.active)]
        asked = f"; it asks for the parts {', '.join(map(repr, names))}, which no architecture has" if names else ""
        logger.warning(
            "the builder reads nothing of %s, so architectures that differ only there are the same network%s; read "
            "these choices in the builder, or leave them out of the space",
            ", ".join(map(repr, unread)),
            asked,
        )
