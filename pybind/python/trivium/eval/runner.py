"""Run every arm on the same samples; what is done is never done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trivium._errors import InvalidArgument
from trivium.eval.arms import attending
from trivium.eval.files import RECORDS, RESULTS, read_records, record_line, replace, write_results
from trivium.eval.plan import Cell, Plan
from trivium.eval.prompts import Prompts, name_of
from trivium.eval.scoring import row_logits, score
from trivium.eval.subject import Loaded, Subject
from trivium.eval.summary import Records, Row, summarise
from trivium.eval.tasks.sample import Sample
from trivium.hf.tracing import trace

__all__ = ["RECORDS", "RESULTS", "Bench", "Plan", "Row", "finish", "open_folder", "run", "summarise"]

PLAN = "plan.json"
CHECK = 64  # tokens on which each arm is tried first
WARM_UP = 2048  # tokens, untimed, before the first sample of an arm
Found = dict[str, Any]


class Bench:
    """Runs single cells of a plan on a loaded model."""

    def __init__(self, plan: Plan, loaded: Loaded, cache: Path | None = None) -> None:
        self._plan, self._loaded = plan, loaded
        self._prompts = Prompts(loaded.tokenizer, loaded.text, plan.seed, cache)
        self._baseline: tuple[Any, torch.Tensor] | None = None
        self._warm: set[str] = set()

    def check(self) -> None:
        """Run each arm on a few tokens: a wrong name or parameter is found now, not in an hour."""
        ids = torch.tensor([self._loaded.text[:CHECK]], device=self._loaded.model.device)
        for arm in self._plan.arms:
            with attending(self._loaded.model, arm), torch.inference_mode():
                self._loaded.model(input_ids=ids, logits_to_keep=1, use_cache=False)

    def run(self, cell: Cell) -> Found:
        """Score one arm on one sample."""
        sample = self._prompts.get(cell.task, cell.length, cell.index)
        arm = self._plan.arm(cell.arm)
        baseline = self._logits_of_baseline(cell, sample) if sample.kind == "compare" else None
        with attending(self._loaded.model, arm):
            self._warm_up(cell.arm, sample)
            with trace(probe_rows=self._plan.probe_rows) as traced:
                measured = score(self._loaded.model, sample, tokenizer=self._loaded.tokenizer, baseline=baseline)
        return {
            "scores": measured.scores,
            "curves": measured.curves,
            "answer": measured.answer,
            "about": sample.about,
            "prompt": name_of(sample),
            "tokens": len(sample.ids),
            "density": traced.density,
            "coverage": traced.coverage,
            "ttft_s": measured.ttft_s - traced.measuring,
            "attention_s": sum(call.seconds for call in traced.prefill),
            "notes": traced.notes,
        }

    def _logits_of_baseline(self, cell: Cell, sample: Sample) -> torch.Tensor:
        """The baseline's logits on this sample, computed once for all arms that follow."""
        key = (cell.task, cell.length, cell.index)
        if self._baseline is None or self._baseline[0] != key:
            with attending(self._loaded.model, self._plan.baseline):
                self._baseline = (key, row_logits(self._loaded.model, sample)[0])
        return self._baseline[1]

    def _warm_up(self, arm: str, sample: Sample) -> None:
        """The first call of an arm starts processes and compiles kernels: not what is timed."""
        if arm in self._warm:
            return
        with torch.inference_mode():
            ids = torch.tensor([sample.ids[:WARM_UP]], device=self._loaded.model.device)
            self._loaded.model(input_ids=ids, logits_to_keep=1, use_cache=False)
        self._warm.add(arm)


def run(
    plan: Plan,
    model: Any,
    tokenizer: Any,
    text: list[int],
    folder: Path,
    *,
    probe_rows: int | None = None,
    step: Callable[[], None] = lambda: None,
    subject: Subject | None = None,
    cache: Path | None = None,
) -> list[Row]:
    """Run what of a plan is not in ``folder`` yet, and sum up.

    Parameters
    ----------
    text : list of int
        Tokens of the text that samples are cut from.
    folder : Path
        Records, one line each, and results. A folder of another plan is refused.
    probe_rows : int, optional
        Random rows of each head on which coverage is measured; default: the plan's.
    step : callable
        Called when a cell is done.
    subject : Subject, optional
        What the model and the text are called, for the plan that the folder keeps.
    cache : Path, optional
        Where samples are kept from run to run.
    """
    if probe_rows is not None:
        plan = Plan(plan.arms, plan.tasks, plan.lengths, plan.samples, plan.seed, probe_rows)
    records = open_folder(plan, subject, folder)
    bench = Bench(plan, Loaded(model, tokenizer, text), cache)
    return finish(plan, records, folder, _cells(plan, bench, records), step)


def finish(
    plan: Plan, records: Records, folder: Path, found: Iterable[tuple[Cell, Found]], step: Callable[[], None] = lambda: None
) -> list[Row]:
    """Record what is found as it comes, then write the results."""
    for _ in records:
        step()
    with (folder / RECORDS).open("a", encoding="utf-8") as log:
        for cell, record in found:
            records[cell] = record
            log.write(record_line(cell, record))
            log.flush()
            step()
    rows = summarise(plan, records)
    write_results(folder, plan, records, rows)
    return rows


def open_folder(plan: Plan, subject: Subject | None, folder: Path) -> Records:
    """The records of earlier runs of this very plan; a folder of another is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"plan": asdict(plan), **({"subject": asdict(subject)} if subject else {})}
    text = json.dumps(described, indent=1, default=repr)
    path = folder / PLAN
    if not path.exists():
        replace(path, text)
    elif path.read_text(encoding="utf-8") != text:
        raise InvalidArgument(f"{folder}: holds the records of another plan", hint="choose another folder, or remove it")
    return read_records(folder / RECORDS)


def _cells(plan: Plan, bench: Bench, done: Records) -> Iterator[tuple[Cell, Found]]:
    for cell in plan.order():
        if cell not in done:
            yield cell, bench.run(cell)
