"""Stop strings: end a text at given strings, whatever the tokens are that they consist of.

Stop strings are compared with text and not with tokens, because a tokenizer may split the same string in several ways:
`result` after a blank is another token than `result` at the start of a line. mlx-lm's server compares tokens to end a
generation, so a stop string whose tokens differ is cut from its text while the model goes on.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes a text through until one of the stop strings is complete.

    Text that may be the beginning of a stop string is held back until the next characters decide. The result does not depend
    on how the text is divided into pieces: the stop string that ends first ends the text, and of those that end at the same
    character the longest.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = sorted(strings, key=len, reverse=True)
        self._held = ""
        self.found: str | None = None

    def feed(self, piece: str) -> str:
        """Take the next piece of text and return what is certain not to belong to a stop string. `found` is the stop string
        once one is complete; everything after it is dropped."""
        if self.found is not None:
            return ""
        text = self._held + piece
        # A string that was complete within the held text would have been found, so an end lies after it.
        ends = [(at + len(s), -len(s), s) for s in self._strings if (at := text.find(s)) >= 0]
        if ends:
            end, _, self.found = min(ends)
            self._held = ""
            return text[: end - len(self.found)]
        open_from = len(text) - self._open(text)
        self._held = text[open_from:]
        return text[:open_from]

    def flush(self) -> str:
        """Return the text that is still held back, at the end of the text."""
        text, self._held = self._held, ""
        return text

    def _open(self, text: str) -> int:
        """Length of the longest end of `text` that is the beginning of a stop string."""
        longest = 0
        for string in self._strings:
            for length in range(min(len(string) - 1, len(text)), longest, -1):
                if text.endswith(string[:length]):
                    longest = length
                    break
        return longest
