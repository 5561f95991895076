"""Pass key retrieval by length: plain rope and STRING, under dense attention and FlexPrefill.

    python tests/bench/passkey.py --lengths 6144 8192 10240 --samples 20 --out passkey-8k

Records go to the folder as they come; a second run goes on where the first stopped.
Prints exact retrieval and the NLL of the key, with paired 95 % intervals against
plain rope.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from trivium import eval as evaluation
from trivium.demo.download import smollm2
from trivium.demo.machine import default_dtype
from trivium.demo.model import load_model
from trivium.demo.prompt import book

ARMS = (
    evaluation.Arm("rope", "dense"),
    evaluation.Arm("string L/3", "dense", "string"),
    evaluation.Arm("flexprefill", "flexprefill"),
    evaluation.Arm("flexprefill + string L/3", "flexprefill", "string"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 6144, 8192, 10240])
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("passkey"))
    parser.add_argument("--model-dir", type=Path, help="a Hugging Face folder instead of SmolLM2-135M")
    arguments = parser.parse_args()
    console = Console()
    folder = arguments.model_dir or smollm2(console.print)
    model, tokenizer = load_model(folder, default_dtype())
    text = tokenizer.encode(book(), add_special_tokens=False)
    plan = evaluation.Plan(ARMS, ("passkey",), tuple(arguments.lengths), arguments.samples)
    cells = iter(track(list(plan.cells()), console=console, description="cells"))
    rows = evaluation.run(plan, model, tokenizer, text, arguments.out, step=lambda: next(cells, None))
    table = Table("length", "arm", "exact", "difference", "NLL of the key", "difference", "density")
    for row in rows:
        table.add_row(
            f"{row.length:,}", row.arm, show(row.exact), show(row.exact_difference), show(row.nll),
            show(row.nll_difference), f"{row.density:.3f}",
        )  # fmt: skip
    console.print(table)


def show(found: evaluation.Interval) -> str:
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


if __name__ == "__main__":
    main()
