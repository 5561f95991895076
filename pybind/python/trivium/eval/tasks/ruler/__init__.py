"""RULER's 13 tasks (arXiv:2404.06654) from their definitions, over any text.

Prompts and numbers of needles, hops and words are the paper's. Two things differ,
because nothing is downloaded: the essays are the text that is given, and the
documents of the two question-answering tasks are passages of that text into which
made-up facts are put, instead of SQuAD's and HotpotQA's. Figures of these tasks are
for comparing arms with each other, not with published tables.
"""

from __future__ import annotations

from functools import partial

from trivium.eval.tasks.ruler.answering import qa
from trivium.eval.tasks.ruler.counting import common_words, frequent_words
from trivium.eval.tasks.ruler.needles import NEEDLES, needles
from trivium.eval.tasks.ruler.tracing import variable_tracking
from trivium.eval.tasks.sample import MakeSample

RULER: dict[str, MakeSample] = {
    **{name: partial(needles, setting) for name, setting in NEEDLES.items()},
    "vt": variable_tracking,
    "cwe": common_words,
    "fwe": frequent_words,
    "qa_1": partial(qa, 1),
    "qa_2": partial(qa, 2),
}

__all__ = ["RULER"]
