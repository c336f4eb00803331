"""Does patching find circuits that are known? The AUROC of every edge's measured effect against the true edges.

    python -m circuitgraph.studies.ground_truth [--programs FOLDER] [--seed 0]

prints one line per program: the gates and the counting program of `programs`, and the compiled ones in FOLDER. An edge
u -> v is patched alone: from what v reads, what u writes is subtracted, and what u writes when ablated is added;
everything else is computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import torch
from torch import Tensor

from circuitgraph.attribution.runs import resample_rows
from circuitgraph.evaluation.agreement import auroc
from circuitgraph.models.model import Model, Replace
from circuitgraph.nodes import Site
from circuitgraph.studies.programs import Program, build_model, gate, histogram, read_tracr

KINDS = ("zero", "mean", "resample", "corrupted", "denoising")


def candidate_edges(program: Program) -> list[tuple[str, str]]:
    """Every edge (writer, reader) that the model's shape allows."""
    writers, edges = ["embed", "pos_embed"], []
    for layer in range(len(program.layers)):
        heads = [f"a{layer}.h{head}" for head in range(program.n_heads)]
        edges += [(writer, f"{head}<{part}>") for head in heads for part in "qkv" for writer in writers]
        writers += heads
        edges += [(writer, f"m{layer}") for writer in writers]
        writers.append(f"m{layer}")
    return edges + [(writer, "logits") for writer in writers]


def edge_effects(program: Program, model: Model, kind: str, *, seed: int = 0) -> dict[tuple[str, str], float]:
    """How much patching each edge alone changes the outputs: mean |change| over examples, positions and outputs.

    Args:
        program: Its clean and corrupted inputs are run.
        model: The program as a model, from `build_model`.
        kind: What stands in for what the writer writes. On clean inputs: "zero", "mean" (over the corrupted inputs, per
            position), "resample" (another example's corrupted run) or "corrupted" (the same example's). On corrupted
            inputs: "denoising", its clean value.
        seed: Seed of resampling.
    """
    own, other = (program.corrupted, program.clean) if kind == "denoising" else (program.clean, program.corrupted)
    outputs, written = _run(model, program, own)
    ablated = _run(model, program, other)[1]
    if kind == "zero":
        ablated = {name: torch.zeros_like(value) for name, value in written.items()}
    elif kind == "mean":
        ablated = {name: value.mean(0, keepdim=True).expand_as(value) for name, value in ablated.items()}
    elif kind == "resample":
        rows = resample_rows(len(own), seed)
        ablated = {name: value[rows] for name, value in ablated.items()}
    effects = {}
    for source, target in candidate_edges(program):
        replace = _without(program, target, written[source] - ablated[source])
        patched, _ = model.run(own, replace=replace)
        effects[source, target] = float((patched - outputs).abs().mean())
    return effects


def score(program: Program, model: Model, kind: str, *, seed: int = 0) -> tuple[float | None, int]:
    """How well the effects tell true edges from the rest.

    Args: As of `edge_effects`.

    Returns the area under the ROC curve (None if it is undefined), and how many true edges have an effect at all.
    """
    effects = edge_effects(program, model, kind, seed=seed)
    truth = torch.tensor([edge in program.edges for edge in effects])
    values = torch.tensor(list(effects.values()), dtype=torch.float64)
    values = torch.where(values > 1e-9, values, 0.0)
    return auroc(values, truth), int((values[truth] > 0).sum())


def table(programs: Sequence[Program], *, seed: int = 0) -> list[str]:
    """The table as lines of Markdown; each cell is AUROC (true edges with an effect / true edges)."""
    lines = [f"| program | edges | {' | '.join(KINDS)} |", f"| --- | ---: | {' | '.join(['---:'] * len(KINDS))} |"]
    for program in programs:
        cells, model = [], build_model(program)
        for kind in KINDS:
            area, n_true = score(program, model, kind, seed=seed)
            cells.append(f"{'undefined' if area is None else f'{area:.2f}'} ({n_true}/{len(program.edges)})")
        lines.append(f"| {program.name} | {len(candidate_edges(program))} | {' | '.join(cells)} |")
    return lines


def _run(model: Model, program: Program, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs [examples, pos, out], and what each component writes into the stream, [examples, pos, d]."""
    layers = range(len(program.layers))
    sites = [Site("embed"), Site("pos_embed"), *(Site(kind, layer) for kind in ("z", "mlp_out") for layer in layers)]
    outputs, values = model.run(tokens, record=sites)
    embed = values[Site("embed")]
    written = {"embed": embed, "pos_embed": values[Site("pos_embed")].expand_as(embed)}
    for layer, weights in enumerate(program.layers):
        for head in range(program.n_heads):
            columns = _columns(program, head)
            written[f"a{layer}.h{head}"] = values[Site("z", layer)][..., columns] @ weights["W_O"][columns]
        written[f"m{layer}"] = values[Site("mlp_out", layer)]
    return outputs, written


def _without(program: Program, target: str, change: Tensor) -> Mapping[Site, Replace]:
    """The replacement that subtracts `change` from what this reader reads, and from nothing else."""
    if target == "logits":
        return {Site("resid_post", len(program.layers) - 1): lambda x, recorded: x - change}
    if target.startswith("m"):
        layer = int(target[1:])
        return {Site("mlp_pre", layer): lambda x, recorded: x - change @ program.layers[layer]["W_in"]}
    layer, head, part = int(target[1 : target.index(".")]), int(target[target.index("h") + 1 : -3]), target[-2]
    columns = _columns(program, head)

    def edit(x: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
        x = x.clone()
        x[..., columns] -= change @ program.layers[layer][f"W_{part.upper()}"][:, columns]
        return x

    return {Site(part, layer): edit}


def _columns(program: Program, head: int) -> slice:
    return slice(head * program.d_head, (head + 1) * program.d_head)


@click.command()
@click.option(
    "--programs", type=click.Path(path_type=Path), help="Folder of programs that tracr compiled, npz and json."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the inputs and of resampling.")
def main(programs: Path | None, seed: int) -> None:
    """Print a table: AUROC of measured edge effects against the true circuit, per program and kind of ablation."""
    studied = [gate("and"), gate("or"), histogram(seed=seed)]
    if programs is not None:
        studied += [read_tracr(path, seed=seed) for path in sorted(programs.glob("*.npz"))]
    for line in table(studied, seed=seed):
        click.echo(line)


if __name__ == "__main__":
    main()
