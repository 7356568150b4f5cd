"""Stop strings, matched on text: generation ends at the token that completes one.

mlx-lm compares token ids, and the same text has several tokenizations: `result` never matches ` result`. Its batch calls
`matcher().advance(token)` for every token, so an object with these two methods takes the place of its `StopSequences`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from engine.generation.stop_strings import StopStrings


class TextStop:
    """Stop strings and end-of-text tokens of one request.

    The generation thread calls `advance`; the request's thread takes one text per token with `text`, and the rest with
    `finish` after the last token. A text that may be the beginning of a stop string is withheld until that is decided.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._end = set(tokenizer.eos_token_ids)
        self._detokenizer = tokenizer.detokenizer
        self._strings = StopStrings(stops)
        self._texts: deque[str] = deque()

    @property
    def matched(self) -> bool:
        """Whether a stop string ended the text."""
        return self._strings.found is not None

    def matcher(self) -> TextStop:
        """The object itself: it belongs to one request."""
        return self

    def advance(self, token: int) -> bool:
        """Take in one token; returns whether the text ends here."""
        if token in self._end:
            self._texts.append("")
            return True
        self._detokenizer.add_token(token)
        self._texts.append(self._strings.feed(self._detokenizer.last_segment))
        return self.matched

    def text(self) -> str:
        """The text that the next token released."""
        return self._texts.popleft()

    def finish(self) -> str:
        """The text that is left after the last token."""
        if self.matched:
            return ""
        self._detokenizer.finalize()
        rest = self._strings.feed(self._detokenizer.last_segment)
        return rest if self.matched else rest + self._strings.flush()
