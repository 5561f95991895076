"""The text that samples are cut from: tokens, and the sentences and words in them."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from trivium._errors import InvalidArgument
from trivium.eval.tasks.sample import encode

SENTENCE_END = re.compile(r"(?<=[.!?])[\"”')]*\s+")
WORD = re.compile(r"\b[a-z]{4,12}\b")


class Corpus(list[int]):
    """A text as tokens; a list of ids wherever one is wanted."""

    def __init__(self, tokenizer: Any, string: str) -> None:
        super().__init__(encode(tokenizer, string))
        self.string = string

    @classmethod
    def of(cls, tokenizer: Any, ids: list[int]) -> Corpus:
        """The text of plain ids, read back by the tokenizer."""
        if isinstance(ids, cls):
            return ids
        if not hasattr(tokenizer, "decode"):
            raise InvalidArgument("text: ids without a tokenizer that decodes: want a Corpus", hint="Corpus(tokenizer, string)")
        made = cls.__new__(cls)
        list.__init__(made, ids)
        made.string = str(tokenizer.decode(ids))
        return made

    @cached_property
    def sentences(self) -> list[str]:
        """Sentences, each on one line."""
        found = (" ".join(part.split()) for part in SENTENCE_END.split(self.string))
        sentences = [sentence for sentence in found if sentence]
        if not sentences:
            raise InvalidArgument("text: it has no sentence: want prose")
        return sentences

    @cached_property
    def words(self) -> list[str]:
        """Distinct lower-case words of 4 to 12 letters, in the order of the alphabet."""
        return sorted(set(WORD.findall(self.string)))
