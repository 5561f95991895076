"""Pass key and perplexity by position on a real model, at and beyond its trained length.

    python tests/bench/passkey.py --lengths 6144 8192 10240 --samples 20 --out passkey
    python tests/bench/passkey.py --device cuda --dtype bfloat16 --lengths 4096 6144 8192 10240 12288 --out passkey-gpu

Each sample is a window of a book that hides a pass key, at depths that cover the
window evenly, and asks for it at the end; one forward pass gives the likelihood of
the key and of every token of the book by position. All arms see the same windows.
Records go to the folder as they come: a second run goes on where the first stopped,
and ``--cells`` ends a run early. Prints exact retrieval and NLLs with 95 % intervals,
differences paired against plain rope.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import trivium
from trivium import eval as evaluation
from trivium.demo.download import smollm2
from trivium.demo.machine import default_dtype
from trivium.demo.model import load_model
from trivium.demo.prompt import book

STRING_HALF = {"strategy": "string", "local": 128}  # shift: half of the prompt, set for each length
ARMS = {
    "torch": evaluation.Arm("torch", evaluation.TORCH),
    "rope": evaluation.Arm("rope", "dense"),
    "string": evaluation.Arm("string L/3", "dense", "string"),
    "string-half": evaluation.Arm("string n/2", "dense", STRING_HALF),
    "ntk2": evaluation.Arm("ntk x2", "dense", {"strategy": "ntk", "variant": "aware", "factor": 2.0}),
    "ntk4": evaluation.Arm("ntk x4", "dense", {"strategy": "ntk", "variant": "aware", "factor": 4.0}),
    "yarn2": evaluation.Arm("yarn x2", "dense", {"strategy": "yarn", "factor": 2.0}),
    "rerope": evaluation.Arm("rerope", "dense", "rerope"),
    "selfextend": evaluation.Arm("selfextend", "dense", "selfextend"),
    "dca": evaluation.Arm("dca", "dense", "dca"),
    "flexprefill": evaluation.Arm("flexprefill", "flexprefill"),
    "flexprefill-string": evaluation.Arm("flexprefill + string L/3", "flexprefill", "string"),
}
BUCKETS = 8  # of a window, for perplexity by position
ROWS = 1024  # whose logits are made at a time
RECORDS = "records.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 6144, 8192, 10240])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["rope", "string", "string-half", "ntk2"])
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--cells", type=int, default=0, help="stop after so many forward passes; 0: do all")
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1")
    parser.add_argument("--dtype", default="", help="of the model; default: what suits the device")
    parser.add_argument("--out", type=Path, default=Path("passkey"))
    parser.add_argument("--model-dir", type=Path, help="a Hugging Face folder instead of SmolLM2-135M")
    a = parser.parse_args()
    console = Console()
    folder = a.model_dir or smollm2(lambda what: None)
    model, tokenizer = load_model(folder, a.dtype or ("bfloat16" if a.device != "cpu" else default_dtype()))
    model = model.to(a.device)
    text = tokenizer.encode(book(), add_special_tokens=False)
    wanted = [(n, i, arm) for i in range(a.samples) for n in a.lengths for arm in a.arms]
    found = read(a.out)
    left = [cell for cell in wanted if cell not in found]
    for length, index, arm in left[: a.cells or None]:
        started = time.perf_counter()
        sample = evaluation.make_sample("passkey", tokenizer, text, length, index, 0)
        with evaluation.attending(model, fitted(ARMS[arm], length)):
            record = {**score(model, sample), **sample.about, "seconds": time.perf_counter() - started}
        found[length, index, arm] = record
        write(a.out, (length, index, arm), record)
        console.print(f"{length} sample {index} {arm}: exact {record['exact']:.0f}, {record['seconds']:.1f} s")
    report(console, a, found)


def fitted(arm: evaluation.Arm, length: int) -> evaluation.Arm:
    """The arm for a length: S = n/2 depends on it."""
    if arm.position is not STRING_HALF:
        return arm
    return evaluation.Arm(arm.name, arm.attention, {**STRING_HALF, "shift": length // 2})


@torch.inference_mode()
def score(model: Any, sample: evaluation.Sample) -> dict[str, Any]:
    """Exact retrieval, NLL of the key, and mean NLL of each part of the window."""
    ids = torch.tensor([sample.ids], device=model.device)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    losses, likeliest = [], []
    for rows, want in zip(hidden.split(ROWS), ids[0, 1:].split(ROWS)):
        logits = model.lm_head(rows).float()
        losses.append(torch.nn.functional.cross_entropy(logits, want, reduction="none"))
        likeliest.append(logits.argmax(dim=-1) == want)
    loss, right = torch.cat(losses), torch.cat(likeliest)
    book_loss = loss[: -sample.scored]
    edges = [len(book_loss) * b // BUCKETS for b in range(BUCKETS + 1)]
    return {
        "exact": float(right[-sample.scored :].all()),
        "nll": float(loss[-sample.scored :].mean()),
        "by_position": [float(book_loss[low:high].mean()) for low, high in zip(edges, edges[1:])],
    }


def read(folder: Path) -> dict[tuple[int, int, str], dict[str, Any]]:
    path = folder / RECORDS
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return {tuple(line["cell"]): line["found"] for line in lines}


def write(folder: Path, cell: tuple[int, int, str], record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RECORDS).open("a") as log:
        log.write(json.dumps({"cell": cell, "found": record}) + "\n")


def report(console: Console, a: argparse.Namespace, found: dict[tuple[int, int, str], dict[str, Any]]) -> None:
    table = Table("length", "arm", "samples", "exact", "difference", "NLL of the key", "difference", *(f"{b + 1}/{BUCKETS}" for b in range(BUCKETS)))
    for length in a.lengths:
        whole = [i for i in range(a.samples) if all((length, i, arm) in found for arm in a.arms)]
        if not whole:
            continue
        base = [found[length, i, a.arms[0]] for i in whole]
        for arm in a.arms:
            rows = [found[length, i, arm] for i in whole]
            columns = []
            for name in ("exact", "nll"):
                values, first = [r[name] for r in rows], [r[name] for r in base]
                columns += [show(evaluation.interval(values)), show(evaluation.paired(values, first))]
            means = torch.tensor([r["by_position"] for r in rows]).mean(dim=0).tolist()
            table.add_row(f"{length:,}", ARMS[arm].name, str(len(whole)), *columns, *(f"{m:.2f}" for m in means))
    console.print(table)
    console.print(f"trivium {trivium.__version__}, {a.device}; columns n/{BUCKETS}: NLL of the book in that part of the window")


def show(found: evaluation.Interval) -> str:
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


if __name__ == "__main__":
    main()
