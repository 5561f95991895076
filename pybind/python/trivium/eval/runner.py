"""Run every arm on the same samples; what is done is never done again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trivium._errors import InvalidArgument
from trivium._files import replace
from trivium.eval.arms import attending
from trivium.eval.decoding import Started, decode, room
from trivium.eval.files import RECORDS, RESULTS, read_records, record_line, write_results
from trivium.eval.plan import Cell, Plan
from trivium.eval.prompts import Prompts, name_of
from trivium.eval.scoring import Measured, answered, row_logits, score, start
from trivium.eval.subject import Loaded, Subject
from trivium.eval.summary import Records, Row, summarise
from trivium.eval.tasks.sample import Sample
from trivium.eval.units import Unit, units
from trivium.hf.tracing import Trace, trace

__all__ = ["RECORDS", "RESULTS", "Bench", "Plan", "Row", "finish", "open_folder", "run", "summarise"]

PLAN = "plan.json"
CHECK = 64  # tokens on which each arm is tried first
WARM_UP = 2048  # tokens, untimed, before the first sample of an arm
Found = dict[str, Any]


class Bench:
    """Runs the units of a plan on a loaded model.

    Parameters
    ----------
    processes : int
        How many share the machine; noted with each record, since times depend on it.
    """

    def __init__(self, plan: Plan, loaded: Loaded, cache: Path | None = None, processes: int = 1) -> None:
        self._plan, self._loaded, self._processes = plan, loaded, processes
        self._prompts = Prompts(loaded.tokenizer, loaded.text, plan.seed, cache, plan.chat)
        self._baseline: tuple[Any, torch.Tensor] | None = None
        self._warm: set[tuple[str, int]] = set()

    def check(self) -> None:
        """Run each arm on a few tokens: a wrong name or parameter is found now, not in an hour."""
        ids = torch.tensor([self._loaded.text[:CHECK]], device=self._loaded.model.device)
        for arm in self._plan.arms:
            with attending(self._loaded.model, arm), torch.inference_mode():
                self._loaded.model(input_ids=ids, logits_to_keep=1, use_cache=False)

    def run(self, unit: Unit) -> Iterator[tuple[Cell, Found]]:
        """Score the arms of a unit on its sample."""
        sample = self._prompts.get(unit.task, unit.length, unit.index)
        prompt = name_of(sample)
        scored = self._generated(unit, sample) if sample.kind == "generate" else self._scored(unit, sample)
        for name, measured, traced in scored:
            if name in unit.missing:
                yield unit.cell(name), self._found(sample, prompt, measured, traced)

    def _scored(self, unit: Unit, sample: Sample) -> Iterator[tuple[str, Measured, Trace]]:
        for name in unit.missing:
            baseline = self._logits_of_baseline(unit, sample) if sample.kind == "compare" else None
            with self._arm(name, sample), trace(probe_rows=self._plan.probe_rows) as traced:
                measured = score(self._loaded.model, sample, baseline=baseline)
            yield name, measured, traced

    def _generated(self, unit: Unit, sample: Sample) -> Iterator[tuple[str, Measured, Trace]]:
        """Prefill under one arm after another, decode the answers together, as many as there is room for."""
        left = list(unit.arms)
        while left:
            begun: list[tuple[str, Started, Trace]] = []
            while left and (not begun or len(begun) < room(begun[0][1], self._loaded.model.device.type)):
                with self._arm(left[0], sample), trace(probe_rows=self._plan.probe_rows) as traced:
                    begun.append((left[0], start(self._loaded.model, sample), traced))
                left.pop(0)
            yield from self._decoded(begun, sample)

    def _decoded(self, begun: list[tuple[str, Started, Trace]], sample: Sample) -> Iterator[tuple[str, Measured, Trace]]:
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        most = min(sample.new_tokens, self._plan.new_tokens or sample.new_tokens)
        with attending(model, self._plan.arm(begun[0][0])):
            texts = decode(model, tokenizer, sample, [each for _, each, _ in begun], most)
        for (name, each, traced), text in zip(begun, texts):
            yield name, answered(text, sample, each.seconds), traced

    def _found(self, sample: Sample, prompt: str, measured: Measured, traced: Trace) -> Found:
        return {
            "scores": measured.scores,
            "curves": measured.curves,
            "answer": measured.answer,
            "about": sample.about,
            "prompt": prompt,
            "tokens": len(sample.ids),
            "density": traced.density,
            "coverage": traced.coverage,
            "ttft_s": measured.ttft_s - traced.measuring,
            "attention_s": sum(call.seconds for call in traced.prefill),
            "processes": self._processes,
            "chat": self._prompts.chat and sample.kind == "generate",
            "notes": traced.notes,
        }

    @contextmanager
    def _arm(self, name: str, sample: Sample) -> Iterator[None]:
        with attending(self._loaded.model, self._plan.arm(name)):
            self._warm_up(name, sample)
            yield

    def _logits_of_baseline(self, unit: Unit, sample: Sample) -> torch.Tensor:
        """The baseline's logits on this sample, computed once for all arms that follow."""
        key = (unit.task, unit.length, unit.index)
        if self._baseline is None or self._baseline[0] != key:
            with attending(self._loaded.model, self._plan.baseline):
                self._baseline = (key, row_logits(self._loaded.model, sample)[0])
        return self._baseline[1]

    def _warm_up(self, arm: str, sample: Sample) -> None:
        """The first call of an arm starts processes, compiles kernels and takes memory: not what is timed.

        On a GPU memory of a new length is taken, and lent to the plugins, at the first call of that length.
        """
        whole = self._loaded.model.device.type == "cuda"
        tokens = len(sample.ids) if whole else min(len(sample.ids), WARM_UP)
        key = (arm, -(-tokens // WARM_UP) if whole else 0)
        if key in self._warm:
            return
        with torch.inference_mode():
            ids = torch.tensor([sample.ids[:tokens]], device=self._loaded.model.device)
            self._loaded.model(input_ids=ids, logits_to_keep=1, use_cache=False)
        self._warm.add(key)


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
        plan = dataclasses.replace(plan, probe_rows=probe_rows)
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
    for unit in units(plan, (cell for cell in plan.order() if cell not in done)):
        yield from bench.run(unit)
