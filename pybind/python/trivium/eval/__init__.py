"""Arms on tasks with paired intervals: is this attention good enough here?

An arm is an attention and a position strategy. Every arm sees the same samples,
so differences are paired and their intervals narrow.

>>> plan, subject = trivium.eval.read("plan.yaml")              # doctest: +SKIP
>>> rows = trivium.eval.evaluate(plan, subject, Path("report")) # doctest: +SKIP
"""

from trivium.eval.arms import TORCH, Arm, attending
from trivium.eval.bootstrap import Interval, interval, paired
from trivium.eval.launch import evaluate
from trivium.eval.plan import Plan, read
from trivium.eval.runner import run
from trivium.eval.schema import schema
from trivium.eval.scoring import Measured, measure, score
from trivium.eval.spread import Cluster
from trivium.eval.subject import Subject
from trivium.eval.summary import Row, summarise
from trivium.eval.tasks import GROUPS, TASKS, Corpus, Sample, make_sample

__all__ = [
    "GROUPS", "TASKS", "TORCH", "Arm", "Cluster", "Corpus", "Interval", "Measured", "Plan", "Row", "Sample", "Subject",
    "attending", "evaluate", "interval", "make_sample", "measure", "paired", "read", "run", "schema", "score", "summarise",
]  # fmt: skip
