"""The errors that end a run; each message says what to do about it."""


class Refused(ValueError):
    """A run cannot start as it was asked for; nothing was trained."""


class CorruptWeights(ValueError):
    """A file of weights in a run is not as it was written, or missing."""


class NotEnoughSpace(ValueError):
    """The disk has no room for the checkpoints of a training that is about to start."""


class Diverged(ArithmeticError):
    """A training's loss was not finite, also after going back; the message names the settings to change."""


class SearchFailed(ArithmeticError):
    """No candidate of a search has a finite score; the message says why, and names a sample that is to blame.

    The scores are forgotten and the supernet is kept: once the sample is corrected, the same call goes on with it.
    """


class OutOfMemory(RuntimeError):
    """A device had too little memory for a stage; the message names the settings to change."""


class ExportFailed(RuntimeError):
    """A network cannot be written in a format, or what was written computes something else; no file was kept."""
