"""Questions about documents: one fact in one of them, or two facts in two."""

from __future__ import annotations

import random
from typing import Any

from trivium.eval.tasks.corpus import Corpus
from trivium.eval.tasks.ruler.fitting import fit
from trivium.eval.tasks.ruler.words import name
from trivium.eval.tasks.sample import Sample

NEW_TOKENS = 32
DOCUMENT_SENTENCES = 5
TEMPLATE = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {question} \0Answer:"
)
KEEPER = "The archive of {place} is kept by {person}."
BORN = "{person} was born in the town of {town}."
ONE_HOP = "Who keeps the archive of {place}?"
TWO_HOPS = "In which town was the keeper of the archive of {place} born?"


def qa(hops: int, tokenizer: Any, text: list[int], length: int, index: int, draw: random.Random) -> Sample:
    """Passages of the text as documents, most with a fact of the same form; one or two facts answer the question."""
    sentences = Corpus.of(tokenizer, text).sentences
    places, people, towns = _names(draw, 40), _names(draw, 40), _names(draw, 40)
    people = [f"{first} {last}" for first, last in zip(people, _names(draw, 40))]
    start, order = draw.randrange(len(sentences)), draw.random()
    golden = [KEEPER.format(place=places[0], person=people[0]), BORN.format(person=people[0], town=towns[0])][:hops]
    others = [line for place, person, town in zip(places[1:], people[1:], towns[1:])
              for line in (KEEPER.format(place=place, person=person), BORN.format(person=person, town=town))[:hops]]  # fmt: skip
    question = (ONE_HOP if hops == 1 else TWO_HOPS).format(place=places[0])

    def build(units: int) -> str:
        facts = [*golden, *others[:units], *([""] * (units - len(others)))]
        documents = [_document(sentences, start + n * DOCUMENT_SENTENCES, fact) for n, fact in enumerate(facts)]
        random.Random(order).shuffle(documents)
        context = "\n\n".join(f"Document {n + 1}:\n{document}" for n, document in enumerate(documents))
        return TEMPLATE.format(context=context, question=question)

    answer = people[0] if hops == 1 else towns[0]
    return fit(tokenizer, build, length, (answer,), NEW_TOKENS, any_answer=True)


def _document(sentences: list[str], start: int, fact: str) -> str:
    """A passage with a fact in its middle."""
    passage = [sentences[(start + n) % len(sentences)] for n in range(DOCUMENT_SENTENCES)]
    half = DOCUMENT_SENTENCES // 2
    return " ".join([*passage[:half], *([fact] if fact else []), *passage[half:]])


def _names(draw: random.Random, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        made = name(draw)
        if made not in found:
            found.append(made)
    return found
