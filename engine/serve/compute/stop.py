"""Stop strings, matched on text: generation ends at the token that completes one.

mlx-lm compares token ids, and the same text has several tokenizations: `result` never matches ` result`. Its batch calls
`matcher().advance(token)` for every token, so an object with these two methods takes the place of its `StopSequences`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from mlx_lm.generate import TextStateMachine


class TextStop:
    """Stop strings and end-of-text tokens of one request.

    The generation thread calls `advance`; the request's thread takes one text per token with `text`, and the rest with
    `finish` after the last token. A text that may be the beginning of a stop string is withheld until that is decided.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.matched = False
        self._end = set(tokenizer.eos_token_ids)
        self._detokenizer = tokenizer.detokenizer
        self._state = TextStateMachine({"normal": [(stop, None) for stop in stops]} if stops else None).make_state()
        self._texts: deque[str] = deque()

    def matcher(self) -> TextStop:
        """The object itself: it belongs to one request."""
        return self

    def advance(self, token: int) -> bool:
        """Take in one token; returns whether the text ends here."""
        if token in self._end:
            self._texts.append("")
            return True
        self._detokenizer.add_token(token)
        self._texts.append(self._split(self._detokenizer.last_segment))
        return self.matched

    def text(self) -> str:
        """The text that the next token released."""
        return self._texts.popleft()

    def finish(self) -> str:
        """The text that is left after the last token."""
        if self.matched:
            return ""
        self._detokenizer.finalize()
        rest = self._split(self._detokenizer.last_segment)
        if self.matched:
            return rest
        self._state, withheld, _ = TextStateMachine.flush(self._state)
        return rest + withheld

    def _split(self, text: str) -> str:
        self._state, segments = TextStateMachine.split(self._state, text)
        self.matched = segments[-1][0] is None
        return "".join(text for _, text in segments)
