"""The shipped network of words, read back by the reader, and its pictures.

    python -m tools.words [--prompts 1000]
    python -m tools.words --run runs/words-fm-0    # a run of your own: it only prints

It draws as many prompts of combinations that training shows, and as many that it never does, with
20 Euler steps and guidance 1 and 2. It writes data/results/words_network.json and words_network.png.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfm_lite import guidance, pretrained, samplers, viz
from cfm_lite.data import captions, words
from cfm_lite.draws import keyed_generator
from cfm_lite.evaluate.reader import reader_for, score_table, scores
from cfm_lite.lab.store import write_rows
from cfm_lite.runs import Run
from tools.cards import fingerprint_of

RESULTS = Path(__file__).parent.parent / "data" / "results"
ROWS = RESULTS / "words_network.json"
SCALES, CHUNK = (1.0, 2.0), 100
SHOWN = (
    *("a red seven left of a blue star", "a small green two above a large yellow circle"),
    *("a large purple eight", "a pink cross below a cyan five", "an orange three"),
    *("a yellow triangle right of a red square", "a blue zero", "a green star above a pink six"),
)


def draw(run: Run, prompts: Sequence[str], scale: float) -> Tensor:
    """Pictures (N, 3, 32, 32) of a network of words, each of a noise of its own."""
    ts, drawn = torch.linspace(0, 1, run.recipe.sample_steps + 1), []
    for first in range(0, len(prompts), CHUNK):
        y = captions.encode(prompts[first : first + CHUNK])
        noise = torch.randn(
            len(y), 3, words.SIDE, words.SIDE, generator=keyed_generator("cpu", 0, first)
        )
        drawn.append(samplers.sample(guidance.cfg(run.model, y, scale), noise, ts, samplers.euler))
    return run.images(torch.cat(drawn))


def measured(run: Run, prompts: int) -> list[dict[str, Any]]:
    """The reader's rows for each scale, and for real pictures of the same sentences."""
    asked = [words.load(split, prompts) for split in ("seen", "held_out")]
    said = [sentence for part in asked for sentence in part.captions]
    rows = []
    for scale in (None, *SCALES):
        x = torch.cat([part.x1 for part in asked]) if scale is None else draw(run, said, scale)
        source = "real" if scale is None else f"drawn, guidance {scale:g}"
        found = scores(reader_for(), x, said)
        print(source, *score_table(found), sep="\n", flush=True)
        rows += [{"source": source, **row} for row in found]
    return rows


def table() -> str:
    """What the shipped network reaches, as Markdown; nothing is shown for other weights."""
    rows = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []
    rows = [row for row in rows if row["fingerprint"] == fingerprint_of("words")]
    if not rows:
        return "Not measured: run `python -m tools.words`."
    parts = list(dict.fromkeys(row["metric"] for row in rows))
    lines = [f"| pictures | prompts | number | everything | {' | '.join(parts[1:])} |"]
    lines.append("|---|---|---|" + "---|" * len(parts))
    for first in range(0, len(rows), len(parts)):
        group = rows[first : first + len(parts)]
        source, prompts, things, count = (
            group[0][name] for name in ("source", "prompts", "things", "count")
        )
        kind = f"{prompts.replace('_', ' ')}, {'one thing' if things == 1 else 'two things'}"
        shares = " | ".join(f"{row['value']:.1%}" for row in group)
        lines.append(f"| {source} | {kind} | {count:,} | {shares} |")
    source = (
        "Shares of pictures that the reader finds right. Measured by `python -m tools.words`; rows "
    )
    return "\n".join([*lines, "", f"{source}in `data/results/words_network.json`."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.run is not None:
        measured(Run.open(options.run), options.prompts)
        return
    run = pretrained.run_of("words")
    shown = viz.captioned(draw(run, SHOWN, 2.0), list(SHOWN), columns=4)
    viz.save(shown, RESULTS / "words_network.png")
    base = {"network": "words", "fingerprint": fingerprint_of("words")}
    write_rows(ROWS, [base | row for row in measured(run, options.prompts)])


if __name__ == "__main__":
    main()
