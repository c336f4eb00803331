"""What was measured about a circuit, as values, JSON and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from circuitgraph.evaluation.agreement import Agreement
from circuitgraph.evaluation.conditions import Condition, Curve, Interval, cmd, cpr, interval_text, number_text
from circuitgraph.evaluation.noise import NoisePoint
from circuitgraph.text import table_text

NOT_NEEDED = 0.001  # of faithfulness: a node whose removal costs less is counted as not needed
_OF_SINGLE_NODES_AND_EDGES = ("effects", "drops", "edge_effects")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is measured of every circuit, means over the examples.

    prompts: SHA-256 of the prompt pairs as JSON lines. settings: the metric's name, the seed, which prompts were chosen
    (length, examples), and how much was measured. conditions: faithfulness under every baseline and treatment of
    errors; the first is the one that `faithfulness` and `complement_faithfulness` are of. curves: circuits of growing
    size, where these were asked for. effects: node -> measured effect, metric clean - metric with that node alone at
    its baseline value. edge_effects: (source, target) -> measured effect on the target.
    """

    prompts: str
    settings: dict[str, Any]
    n_examples: int
    metric_clean: float
    conditions: tuple[Condition, ...]
    curves: tuple[Curve, ...] = ()
    effects: dict[str, float] = field(default_factory=dict, repr=False)
    edge_effects: dict[tuple[str, str], float] = field(default_factory=dict, repr=False)

    @property
    def baseline(self) -> str:
        return self.conditions[0].baseline

    @property
    def metric_empty(self) -> float:
        return self.conditions[0].metric_empty

    @property
    def faithfulness(self) -> float | None:
        return _value(self.conditions[0].faithfulness)

    @property
    def complement_faithfulness(self) -> float | None:
        return _value(self.conditions[0].complement_faithfulness)

    @property
    def cpr(self) -> float | None:
        """The area under the curve of the signed order; None without curves."""
        return next((cpr(curve) for curve in self.curves if curve.order == "signed"), None)

    @property
    def cmd(self) -> float | None:
        """The area above the curve of the absolute order; None without curves."""
        return next((cmd(curve) for curve in self.curves if curve.order == "absolute"), None)

    def headline(self) -> dict[str, Any]:
        """The single numbers that follow from the others, for files and pictures."""
        names = ("baseline", "metric_empty", "faithfulness", "complement_faithfulness", "cpr", "cmd")
        return {name: getattr(self, name) for name in names}

    def record(self) -> dict[str, Any]:
        """Everything as JSON values; edge_effects is a list of [source, target, effect]."""
        record: dict[str, Any] = plain_values(self.headline() | asdict(self) | {"edge_effects": ()})
        record["edge_effects"] = [[*pair, effect] for pair, effect in self.edge_effects.items()]
        return record

    def summary(self) -> dict[str, Any]:
        """The record without what belongs to single nodes and edges: the `evidence` of a graph."""
        return {key: value for key, value in self.record().items() if key not in _OF_SINGLE_NODES_AND_EDGES}


@dataclass(frozen=True, kw_only=True)
class Evaluation(Evidence):
    """Measured facts about a circuit C of nodes of the model M, means over the examples.

    In C the nodes of the graph run freely and every other node has its baseline value. `faithfulness` lets all error
    nodes run freely too (against a corrupted baseline they carry only what the circuit puts into them: without any
    other node the corrupted run comes out), `faithfulness_errors_of_circuit` those among its nodes,
    `faithfulness_errors_removed` none. All are None where m(M) - m(0) is no larger than rounding.

    nodes: attribution against measured effect of the n_patched strongest nodes, with their correlation as `pearson_r`.
    edges: local_weight, summed over kinds, against measured effect on the target. drops: node -> loss of faithfulness
    (errors of the circuit) without it, of the n_dropped weakest nodes; n_not_needed of them cost less than NOT_NEEDED,
    None where that was not asked for or is undefined. noise: between the corrupted and the clean values of the
    circuit's nodes.
    """

    n_nodes: int
    n_edges: int
    nodes: Agreement
    edges: Agreement | None = None
    noise: tuple[NoisePoint, ...] = ()
    drops: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def faithfulness_errors_of_circuit(self) -> float | None:
        return self._with_errors("circuit")

    @property
    def faithfulness_errors_removed(self) -> float | None:
        return self._with_errors("remove")

    @property
    def pearson_r(self) -> float | None:
        return self.nodes.pearson_r

    @property
    def n_patched(self) -> int:
        return self.nodes.n

    @property
    def n_dropped(self) -> int:
        return len(self.drops)

    @property
    def n_not_needed(self) -> int | None:
        return sum(drop < NOT_NEEDED for drop in self.drops.values()) if self.drops else None

    def headline(self) -> dict[str, Any]:
        names = (
            "faithfulness_errors_of_circuit",
            "faithfulness_errors_removed",
            "pearson_r",
            "n_patched",
            "n_dropped",
            "n_not_needed",
        )
        return super().headline() | {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        return evaluation_text(self, short=True).rstrip()

    def _with_errors(self, errors: str) -> float | None:
        """The faithfulness under the first baseline with this treatment of errors."""
        return next(_value(row.faithfulness) for row in self.conditions if row.errors == errors)


def evaluation_text(evaluation: Evaluation, *, short: bool = False) -> str:
    """The tables that `circuitgraph evaluate` prints.

    Args:
        evaluation: What was measured.
        short: Without the worst estimates, the points of the curves and the noise.
    """
    e = evaluation
    lines = [
        f"circuit    {e.n_nodes} nodes, {e.n_edges} edges; {prompts_text(e)}",
        f"metric     {e.settings['metric']}, clean {e.metric_clean:.4f}, empty {e.metric_empty:.4f} ({e.baseline})",
        "",
        *conditions_table(e.conditions),
        "",
        *_agreement_lines("nodes", "attribution", e.nodes, short),
    ]
    if e.edges is not None:
        lines += _agreement_lines("edges", "local weight", e.edges, short)
    if e.n_not_needed is not None:
        cost = f"cost less than {NOT_NEEDED} of faithfulness when dropped"
        lines += [f"minimality {e.n_not_needed} of {e.n_dropped} nodes {cost}"]
    lines += curves_lines(e, "nodes", short=short)
    if e.noise and not short:
        rows = [[f"{p.share:.1f}", number_text(p.noising), number_text(p.denoising)] for p in e.noise]
        lines += ["", *table_text(["share clean", "noising", "denoising"], rows)]
    return "\n".join(lines) + "\n"


def prompts_text(evidence: Evidence) -> str:
    """Which prompts were measured, and with which seed."""
    length = evidence.settings["length"]
    of_length = "" if length is None else f" of {length} tokens"
    return (
        f"{evidence.n_examples} examples{of_length}, prompts {evidence.prompts[:12]}, seed {evidence.settings['seed']}"
    )


def conditions_table(conditions: Sequence[Condition]) -> list[str]:
    """One row per condition; without a column for errors where there are no error nodes."""
    header = [
        "baseline",
        "errors",
        "m(empty)",
        "m(circuit)",
        "faithfulness",
        "m(complement)",
        "complement_faithfulness",
    ]
    rows = [
        [
            row.baseline,
            row.errors or "",
            number_text(row.metric_empty),
            number_text(row.metric_circuit),
            interval_text(row.faithfulness),
            number_text(row.metric_complement),
            interval_text(row.complement_faithfulness),
        ]
        for row in conditions
    ]
    if all(row.errors is None for row in conditions):
        header, rows = header[:1] + header[2:], [row[:1] + row[2:] for row in rows]
    return table_text(header, rows)


def curves_lines(evidence: Evidence, what: str, *, note: str = "", short: bool = False) -> list[str]:
    """CPR and CMD, and the points of all orders: kept edges where circuits are pruned, f(aithfulness) and c(omplement).

    Args:
        evidence: What was measured.
        what: What circuits are made of, "nodes" or "edges".
        note: What to say behind CPR and CMD.
        short: Without the points.
    """
    if evidence.cpr is None or evidence.cmd is None:
        return []
    lines = ["", f"CPR {evidence.cpr:.4f} (signed order)  CMD {evidence.cmd:.4f} (absolute order){note}"]
    if short:
        return lines
    columns = [[str(point.n_chosen) for point in evidence.curves[0].points]]
    header = [what]
    for curve in evidence.curves:
        complements = [p.complement_faithfulness for p in curve.points if p.complement_faithfulness is not None]
        if not complements:
            header.append(f"{curve.order} kept")
            columns.append([str(point.n_kept) for point in curve.points])
        header.append(f"{curve.order} f")
        columns.append([number_text(point.faithfulness) for point in curve.points])
        if complements:
            header.append(f"{curve.order} c")
            columns.append([number_text(value) for value in complements])
    return [*lines, "", *table_text(header, list(zip(*columns, strict=True)))]


def _agreement_lines(what: str, estimate: str, agreement: Agreement, short: bool) -> list[str]:
    return [
        f"{what:10} {estimate} against measured effect, {agreement!r}",
        *(
            f"           worst {name}: {predicted:+.4f}, measured {measured:+.4f}"
            for name, predicted, measured in ([] if short else agreement.worst[:3])
        ),
    ]


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value


def plain_values(value: Any) -> Any:
    """Tuples as lists, through and through."""
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain_values(item) for item in value]
    return value
