"""Checks that the patterns of a supernet's `separate` and `layout` name what there is."""

from nasx.nn.layout import Layout, names
from nasx.nn.naming import Naming, plain_name
from nasx.nn.survey import Survey
from nasx.space import Space


def check_patterns(space: Space, naming: Naming, layout: Layout, found: Survey) -> None:
    """Refuse patterns that match nothing, and choices in `separate` that no matching module can see."""
    known = found.names
    for what, patterns in (("separate", naming.separate), ("layout", layout)):
        for pattern in patterns:
            if not any(names(pattern, name) for name in known):
                raise ValueError(
                    f"the pattern {pattern!r} of `{what}` matches no parameter or module; "
                    f"names are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
                )
    genes = {gene for gene, _ in space.walk()}
    for pattern, choices in naming.separate.items():
        for choice in choices:
            if not any(gene == choice or gene.endswith(f".{choice}") for gene in genes):
                raise ValueError(
                    f"`separate` names the choice {choice!r} for {pattern!r}, but the space has none of that name"
                )
            _check_seen(pattern, choice, found)


def _check_seen(pattern: str, choice: str, found: Survey) -> None:
    held = [key for key in found.stored if f"{choice}=" in key and names(pattern, plain_name(key))]
    if held and all(f"{choice}=None" in key for key in held):
        raise ValueError(
            f"`separate` names the choice {choice!r} for {pattern!r}, but no matching module belongs to a "
            f"part that has it; say which module list a repeat is: parts={{'block': 'encoder.layer'}}"
        )
