"""Arms on tasks with paired intervals: is this attention good enough here?

An arm is an attention and a position strategy. Every arm sees the same samples,
so differences are paired and their intervals narrow.

>>> plan = trivium.eval.Plan.from_file("plan.yaml")            # doctest: +SKIP
>>> trivium.eval.run(plan, model, tokenizer, text, folder)     # doctest: +SKIP
"""

from trivium.eval.arms import TORCH, Arm, attending
from trivium.eval.bootstrap import Interval, interval, paired
from trivium.eval.runner import Plan, Row, run, summarise
from trivium.eval.tasks import TASKS, Sample, make_sample, measure

__all__ = [
    "TASKS", "TORCH", "Arm", "Interval", "Plan", "Row", "Sample",
    "attending", "interval", "make_sample", "measure", "paired", "run", "summarise",
]  # fmt: skip
