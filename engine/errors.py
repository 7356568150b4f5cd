"""Errors for users: one line each that names the value, the limit and the remedy.

The commands print the message and exit with status 2; a traceback is a bug.
"""


class HeadraceError(Exception):
    """Base of all errors for users. `str(error)` is a single line."""


class KnobError(HeadraceError, ValueError):
    """A knob that does not exist, is out of range, or has no effect."""


class CheckpointError(HeadraceError):
    """A checkpoint that is missing, truncated, not a Mixture of Experts, or of an unknown architecture."""


class JudgeError(HeadraceError):
    """Evaluation texts that cannot be read or are too short to measure with."""


class FigureError(HeadraceError, ValueError):
    """A figure that is not finite, or logits that are not; names the figure and what it is a figure of."""


class ReadError(HeadraceError):
    """An expert that could not be read; names file, layer and expert. No logits are computed from it."""


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint for an unknown name: the most similar known name, or all of them if none is similar."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else "choose one of: " + ", ".join(known)


def first_line(e: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type if it has none."""
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
