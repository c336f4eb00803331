"""Makes the demo: `python -m circuitgraph.demo.train` trains the model and its dictionaries and measures both.

It writes the folders `MODEL` and `DICTIONARIES` anew, and the tables of README.md, which are measured on the saved
files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

from circuitgraph.demo.corpus import text_batches
from circuitgraph.demo.hook_points import load_dictionaries, load_model, record, spliced
from circuitgraph.demo.measure import measure_dictionary, prompt_batches, score_task
from circuitgraph.demo.train_dictionaries import train_dictionaries
from circuitgraph.demo.train_model import train_model
from circuitgraph.embedded import DICTIONARIES, MODEL
from circuitgraph.tasks import TASKS

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
HELD_OUT_SEED = 1000


def main() -> None:
    """Train, measure, print, and write the tables into README.md."""
    torch.set_num_threads(1)  # The sums of a matrix product, and so every weight, depend on the number of threads.
    shutil.rmtree(MODEL, ignore_errors=True)
    shutil.rmtree(DICTIONARIES, ignore_errors=True)
    model_seconds = train_model(MODEL)
    model = load_model(MODEL)
    dictionary_seconds = train_dictionaries(model, DICTIONARIES, range(model.cfg.n_layers))
    report = "\n\n".join((task_table(model), dictionary_table(model), _cost(model_seconds, dictionary_seconds)))
    print(report)
    write_tables(report)


def task_table(model: TransformerBridge, n: int = 1024) -> str:
    """Held-out accuracy of each task: of the plain model, and with dictionaries spliced in without error terms."""
    dictionaries = load_dictionaries(DICTIONARIES, model.cfg.n_layers)
    attention_and_mlp = {points: d for points, d in dictionaries.items() if points.kind in ("z", "mlp_out")}
    residual = {points: d for points, d in dictionaries.items() if points.kind == "resid_post"}
    rows = []
    for task in TASKS:
        cells = [task]
        for splice in ({}, attention_and_mlp, residual):
            with spliced(model, splice):
                score = score_task(model, model.tokenizer, task, n)
            cells += [f"{score.right_above_wrong:.3f}", f"{score.top1:.3f}"]
        rows.append(cells)
    head = ["task", "right above wrong", "top 1", "z + mlp_out: right", "top 1", "resid_post: right", "top 1"]
    return _markdown(head, rows)


def dictionary_table(model: TransformerBridge) -> str:
    """Size, L0, explained variance and living features of each dictionary, on fresh text and on held-out prompts."""
    dictionaries = load_dictionaries(DICTIONARIES, model.cfg.n_layers)
    hooks = sorted({hook for points in dictionaries for hook in (points.hook_in, points.hook_out)})
    fresh = text_batches(model.tokenizer, 80, 64, HELD_OUT_SEED)
    # Without <bos>: its constant activation, the same in every text, would flatter the explained variance.
    text, prompts = (record(model, ids, hooks, bos=False) for ids in (fresh, prompt_batches(model.tokenizer, 256)))
    rows = []
    for points, dictionary in dictionaries.items():
        on_text, on_prompts = (
            measure_dictionary(dictionary, x[points.hook_in], x[points.hook_out]) for x in (text, prompts)
        )
        kind = dictionary.cfg.architecture()
        numbers = [f"{on_text.l0:.1f}", f"{on_text.explained_variance:.3f}", f"{on_prompts.explained_variance:.3f}"]
        rows.append([points.name, kind, str(dictionary.cfg.d_sae), *numbers, str(on_text.n_alive)])
    head = ["dictionary", "architecture", "d_sae", "L0", "explained variance, text", "held-out prompts", "alive"]
    return _markdown(head, rows)


def write_tables(report: str, readme: Path = README) -> None:
    """Put the report between the two markers of the file."""
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n\n{report}\n\n{END}{rest.partition(END)[2]}")


def _cost(model_seconds: float, dictionary_seconds: float) -> str:
    size = sum(file.stat().st_size for folder in (MODEL, DICTIONARIES) for file in folder.rglob("*")) / 1e6
    return (
        f"Training took {model_seconds:.0f} CPU seconds for the model and {dictionary_seconds:.0f} for the"
        f" dictionaries, on one thread; both folders together hold {size:.1f} MB."
    )


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
