"""Which of the networks that stages trained are meant: the best on validation, of one stage or of several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nasx.arch import Arch
from nasx.pipeline.networks import Result, validation_key
from nasx.pipeline.stages import Inputs


@dataclass(frozen=True, slots=True)
class Pick:
    """One of the networks that a stage trained: the best on validation, of all or of some of them.

    `chosen_by` names the stage whose scores decide, where several stages trained the same networks.
    """

    stage: str
    among: tuple[int, ...] | None = None
    chosen_by: str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The stages whose results it reads."""
        return (self.stage,) if self.chosen_by is None else (self.stage, self.chosen_by)

    def number(self, inputs: Inputs) -> int:
        """Return the number of the network."""
        networks = inputs[self.chosen_by or self.stage]["networks"]
        return _best_number(networks, self._numbers(networks))

    def network(self, inputs: Inputs) -> Result:
        """Return the network's result, with its place in the run as `weights`."""
        return self._placed(inputs, self.number(inputs))

    def all(self, inputs: Inputs) -> list[Result]:
        """Return the results of all networks that it could pick."""
        return [self._placed(inputs, number) for number in self._numbers(inputs[self.stage]["networks"])]

    def _numbers(self, networks: Sequence[Result]) -> list[int]:
        return [n for n in _fully_trained(networks) if self.among is None or n in self.among]

    def _placed(self, inputs: Inputs, number: int) -> Result:
        return {**inputs[self.stage]["networks"][number], "weights": f"{self.stage}/{number}.safetensors"}


@dataclass(frozen=True, slots=True)
class BetterOf:
    """The best on validation of what several stages made of a search's networks."""

    picks: tuple[Pick, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The stages whose results it reads."""
        return tuple(dict.fromkeys(stage for pick in self.picks for stage in pick.inputs))

    def number(self, inputs: Inputs) -> int:
        """Return the number of the network in the stage that it is of."""
        return self._best(inputs).number(inputs)

    def network(self, inputs: Inputs) -> Result:
        """Return the network's result, with its place in the run as `weights`."""
        return self._best(inputs).network(inputs)

    def all(self, inputs: Inputs) -> list[Result]:
        """Return the results of all networks that it could pick."""
        return [network for pick in self.picks for network in pick.all(inputs)]

    def _best(self, inputs: Inputs) -> Pick:
        return max(self.picks, key=lambda pick: validation_key(pick.network(inputs)))


def picked_from(networks: Mapping[str, Pick | BetterOf]) -> tuple[str, ...]:
    """Return the stages that picks read."""
    return tuple(dict.fromkeys(stage for pick in networks.values() for stage in pick.inputs))


def best_archs(inputs: Inputs, search: str) -> list[Arch]:
    """Return the best candidates that a search found, best first."""
    return [Arch(candidate["arch"]) for candidate in inputs[search]["best"]]


def with_winner(networks: Mapping[int, Result]) -> Result:
    """Return a stage's result of trained networks, with the best of those that came to the end."""
    ordered = [networks[number] for number in range(len(networks))]
    winner = _best_number(ordered, _fully_trained(ordered))
    return {"networks": ordered, "winner": ordered[winner]["arch"]}


def _fully_trained(networks: Sequence[Result]) -> list[int]:
    """Return the numbers of the networks that were trained to the end, which halving leaves few of."""
    return [n for n, network in enumerate(networks) if network.get("share", 1) == 1]


def _best_number(networks: list[Result], among: list[int]) -> int:
    """Return the number of the best network on validation, of those at some numbers; the first of equals."""
    return max(among, key=lambda number: validation_key(networks[number]))
