"""Tables in Markdown from a folder of `trivium eval`, also of a run that is not over: prompts that every arm has done count.

    python tests/bench/eval/table.py table-smollm2 --times times-smollm2
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from trivium.eval import paired
from trivium.eval.bootstrap import Interval, interval
from trivium.eval.files import RECORDS
from trivium.eval.metrics import verdict
from trivium.eval.plan import Cell
from trivium.eval.summary import Records

# column -> (tasks by how their names begin, metric)
COLUMNS = {
    "needle, exact": ("needle", "exact"),
    "needle, NLL": ("needle", "nll"),
    "RULER": ("ruler.", "score"),
    "NLL": ("perplexity", "nll"),
    "agreement": ("agreement", "agreement"),
    "KL": ("agreement", "kl"),
}
Prompt = tuple[str, int, int]  # task, length, index


def main() -> None:
    """Print a table for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--times", type=Path, help="folder of a run of one process, that had the machine to itself")
    given = parser.parse_args()
    plan = json.loads((given.folder / "plan.json").read_text())["plan"]
    arms = [arm["name"] for arm in plan["arms"]]
    records = read(given.folder)
    clocks = read(given.times) if given.times else records
    for length in plan["lengths"]:
        whole = complete(records, arms, length)
        if whole:
            print(f"{length:,} tokens: {counted(whole)}\n")
            print(render(records, arms, whole, clocks, length))


def read(folder: Path) -> Records:
    """What is recorded so far; the file is left alone."""
    lines = (folder / RECORDS).read_text(encoding="utf-8").splitlines()
    found = (json.loads(line) for line in lines if line.endswith("}"))
    return {Cell(*line["cell"]): line["found"] for line in found}


def complete(records: Records, arms: list[str], length: int) -> list[Prompt]:
    """The prompts that every arm has done."""
    done = Counter((cell.task, cell.length, cell.index) for cell in records if cell.length == length)
    return sorted(prompt for prompt, times in done.items() if times == len(arms))


def counted(whole: list[Prompt]) -> str:
    """How many prompts of each task."""
    return ", ".join(f"{times} prompts of {task}" for task, times in Counter(task for task, _, _ in whole).items())


def render(records: Records, arms: list[str], whole: list[Prompt], clocks: Records, length: int) -> str:
    """The table of one length: figures of the first arm, and paired differences from them."""
    columns = {name: column for name, column in COLUMNS.items() if chosen(whole, column[0])}
    lines = [["arm", "density", "coverage", *columns, "first token, ms"], ["---"] * (len(columns) + 4)]
    for arm in arms:
        measured = [records[Cell(*prompt, arm)] for prompt in chosen(whole, "agreement") or whole]
        cells = [change(records, arms[0], arm, chosen(whole, start), metric) for start, metric in columns.values()]
        lines.append([short(arm), mean(measured, "density"), mean(measured, "coverage"), *cells, first_token(clocks, arm, length)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def chosen(whole: list[Prompt], start: str) -> list[Prompt]:
    """The prompts of the tasks whose names begin so."""
    return [prompt for prompt in whole if prompt[0].startswith(start)]


def change(records: Records, baseline: str, arm: str, prompts: list[Prompt], metric: str) -> str:
    """The mean of the baseline, or another arm's difference from it; bold where the interval leaves zero out."""
    own, base = ([records[Cell(*prompt, name)]["scores"][metric] for prompt in prompts] for name in (arm, baseline))
    if arm == baseline:
        return with_interval(interval(own), figure)
    found = paired(own, base)
    text = with_interval(found, signed)
    return f"**{text}**" if verdict(metric, found) else text


def with_interval(found: Interval, form: Any) -> str:
    """``mean [low, high]``."""
    if found.low == found.mean == found.high:
        return str(form(found.mean))
    return f"{form(found.mean)} [{form(found.low)}, {form(found.high)}]"


def figure(value: float) -> str:
    """Three digits, no zero before the point."""
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0.") else text


def signed(value: float) -> str:
    """The same with a sign, nothing being zero."""
    if abs(value) < 0.0005:
        return ".000"
    return ("+" if value > 0 else "-") + figure(abs(value))


def mean(found: list[dict[str, Any]], key: str) -> str:
    """The mean of what was measured."""
    values = [each[key] for each in found if each[key] is not None]
    return figure(sum(values) / len(values)) if values else "–"


def first_token(clocks: Records, arm: str, length: int) -> str:
    """The median; ``~`` where several processes shared the machine."""
    found = [record for cell, record in clocks.items() if cell.arm == arm and cell.length == length]
    if not found:
        return "–"
    crowded = "~" if max(record["processes"] for record in found) > 1 else ""
    return f"{crowded}{1e3 * median(record['ttft_s'] for record in found):.0f}"


def short(arm: str) -> str:
    """``flexprefill(gamma=0.9, rule=paper) + string`` as ``flexprefill .9, paper + string``."""
    for old, new in (("(gamma=0", " "), (", rule=", ", "), (", coverage=enforce", ", enforced"), (")", "")):
        arm = arm.replace(old, new)
    return arm


if __name__ == "__main__":
    main()
