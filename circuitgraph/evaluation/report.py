"""What was measured about a circuit, as values, JSON and a table.

In come numbers; out come an `Evaluation`, its record and its text. This module runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from circuitgraph.evaluation.agreement import Agreement, Interval
from circuitgraph.evaluation.curves import Curve, NoisePoint
from circuitgraph.text import table_text

NOT_NEEDED = 0.001  # of faithfulness: a node whose removal costs less is counted as not needed


@dataclass(frozen=True)
class Setting:
    """The circuit C, its complement and the empty circuit 0 under one baseline and one treatment of error nodes.

    errors: "keep" (all run freely), "circuit" (those of the circuit, or complement), "stream" (those of it at
    residual-stream dictionaries), "remove" (none). faithfulness = (m(C) - m(0)) / (m(M) - m(0)), complement_faithfulness the same of
    the complement, with bootstrap bounds over the examples; None where m(M) = m(0). m(0) has every error removed.
    """

    baseline: str
    errors: str
    metric_empty: float
    metric_circuit: float
    metric_complement: float
    faithfulness: Interval | None
    complement_faithfulness: Interval | None


@dataclass(frozen=True)
class Evaluation:
    """Measured facts about a circuit C of the model M, means over the examples.

    faithfulness = (m(C) - m(0)) / (m(M) - m(0)); 0 is the run with every node at its baseline value. In C the nodes of
    the graph run freely and every other node has its baseline value; `faithfulness` lets all error nodes run freely too
    (against a corrupted baseline they carry only what the circuit puts into them: without any other node the corrupted
    run comes out), `faithfulness_errors_of_circuit` those among its nodes, `faithfulness_errors_removed` none. None where
    m(M) = m(0). complement_faithfulness is the faithfulness of the complement, errors free.
    pearson_r and `nodes` compare attribution and measured patching effect of the n_patched strongest nodes; `edges` compares
    local_weight, summed over kinds, and measured effect on the target. prompts: SHA-256 of the prompt pairs as JSON lines.
    settings: the same for every baseline and treatment of errors. Only where asked for: n_not_needed (nodes whose removal
    from C, errors of the circuit, costs less than NOT_NEEDED of faithfulness) of n_dropped, curves over circuit size with their
    areas cpr (signed order) and cmd (absolute order), and the noise curve.
    effects: node -> measured effect, metric clean - metric with that node alone at its baseline value. drops: node -> loss of
    faithfulness without it. edge_effects: (source, target) -> measured effect.
    """

    baseline: str
    prompts: str
    seed: int
    n_examples: int
    n_nodes: int
    n_edges: int
    metric_clean: float
    metric_empty: float
    faithfulness: float | None
    faithfulness_errors_of_circuit: float | None
    faithfulness_errors_removed: float | None
    complement_faithfulness: float | None
    pearson_r: float | None
    n_patched: int
    nodes: Agreement
    edges: Agreement | None
    settings: tuple[Setting, ...]
    n_dropped: int
    n_not_needed: int | None
    cpr: float | None
    cmd: float | None
    curves: tuple[Curve, ...]
    noise: tuple[NoisePoint, ...]
    effects: dict[str, float] = field(repr=False)
    drops: dict[str, float] = field(repr=False)
    edge_effects: dict[tuple[str, str], float] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """The evaluation without what belongs to single nodes and edges, as JSON values."""
        return {key: value for key, value in self.record().items() if key not in ("effects", "drops", "edge_effects")}

    def record(self) -> dict[str, Any]:
        """Everything as JSON values; edge_effects is a list of [source, target, effect]."""
        record = plain_values(asdict(self) | {"edge_effects": ()})
        record["edge_effects"] = [[*pair, effect] for pair, effect in self.edge_effects.items()]
        return record  # type: ignore[no-any-return]


def evaluation_text(evaluation: Evaluation) -> str:
    """The table that `circuitgraph evaluate` prints."""
    e = evaluation
    lines = [
        f"circuit    {e.n_nodes} nodes, {e.n_edges} edges; {e.n_examples} examples, prompts {e.prompts[:12]}, seed {e.seed}",
        f"metric     clean {e.metric_clean:.4f}  empty {e.metric_empty:.4f} (baseline {e.baseline})",
        "",
        *table_text(
            ["baseline", "errors", "m(circuit)", "faithfulness", "m(complement)", "complement_faithfulness"],
            [
                [
                    row.baseline,
                    row.errors,
                    number_text(row.metric_circuit),
                    interval_text(row.faithfulness),
                    number_text(row.metric_complement),
                    interval_text(row.complement_faithfulness),
                ]
                for row in e.settings
            ],
        ),
        "",
        *_agreement("nodes", "attribution", e.nodes),
    ]
    if e.edges is not None:
        lines += _agreement("edges", "local weight", e.edges)
    if e.n_not_needed is not None:
        lines += [
            f"minimality {e.n_not_needed} of {e.n_dropped} nodes cost less than {NOT_NEEDED} of faithfulness when dropped"
        ]
    if e.cpr is not None and e.cmd is not None:
        lines += ["", f"CPR {e.cpr:.4f} (signed order)  CMD {e.cmd:.4f} (absolute order)", ""]
        header = ["nodes", *(f"{curve.order} {part}" for curve in e.curves for part in ("f", "c"))]
        points = zip(*(curve.points for curve in e.curves), strict=True)
        rows = [
            [str(p[0].n_nodes), *(number_text(v) for q in p for v in (q.faithfulness, q.complement_faithfulness))]
            for p in points
        ]
        lines += table_text(header, rows)
    if e.noise:
        lines += [
            "",
            *table_text(
                ["share clean", "noising", "denoising"],
                [[f"{p.share:.1f}", number_text(p.noising), number_text(p.denoising)] for p in e.noise],
            ),
        ]
    return "\n".join(lines) + "\n"


def _agreement(what: str, estimate: str, agreement: Agreement) -> list[str]:
    a = agreement
    return [
        f"{what:10} {estimate} against measured effect, {a.n}: pearson {_number(a.pearson_r)}, spearman {_number(a.spearman_r)},"
        f" same sign {_number(a.sign_agreement)}, top {a.top_k} shared {_number(a.top_k_overlap)}",
        *(
            f"           worst {name}: {predicted:+.4f}, measured {measured:+.4f}"
            for name, predicted, measured in a.worst[:3]
        ),
    ]


def number_text(value: float, places: int = 4) -> str:
    """The number rounded, 0 without a sign."""
    return f"{round(value, places) + 0.0:.{places}f}"


def interval_text(interval: Interval | None) -> str:
    """A number with its bounds, to three places."""
    if interval is None:
        return "undefined"
    bounds = ""
    if interval.low is not None and interval.high is not None:
        bounds = f" [{number_text(interval.low, 3)}, {number_text(interval.high, 3)}]"
    return f"{number_text(interval.value, 3)}{bounds}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def plain_values(value: Any) -> Any:
    """Tuples as lists, through and through."""
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain_values(item) for item in value]
    return value
