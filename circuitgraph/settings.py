"""Settings: one frozen dataclass per act, with the defaults, ranges and help texts of what users choose.

The command line makes its options from these classes, functions check their keywords with them, presets are instances,
and a graph's provenance keeps them. This module imports nothing heavy.

    Discovery(max_nodes=500)                    a value; a wrong one raises a CircuitGraphError at once
    resolve(Discovery, None, {"top_k": 5})      keywords over the defaults, or over a given value
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from circuitgraph.errors import CircuitGraphError, MetricError, did_you_mean

METRICS = ("logit_difference", "probability_difference", "logit", "log_probability")
BASELINES = ("corrupted", "zero", "mean")
METHODS = ("gradient", "integrated")
RULES = ("gauss-legendre", "midpoint", "left", "right")
TREATMENTS = ("node", "frozen", "dropped")
QK = ("derivative", "ablate")
ALIGN = ("position", "role")
POSITIONS = ("each", "sum")
BACKENDS = ("auto", "torch", "triton", "reference")


def option(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    fraction_of: str = "",
    error: type[CircuitGraphError] = CircuitGraphError,
    command_line: bool = True,
) -> Any:
    """A field with its default, help text and range. A range or a list of choices is checked when a value is made."""
    facts = {
        "help": help,
        "choices": tuple(choices),
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "fraction_of": fraction_of,
        "error": error,
        "command_line": command_line,
    }
    return field(default=default, metadata=facts)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings; checks every value against its field. Raises CircuitGraphError with the field's name."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            _check(each, value)
            if type_of(each) in (int, float) and value is not None:  # numpy's numbers become Python's
                object.__setattr__(self, each.name, type_of(each)(value))


@dataclass(frozen=True, kw_only=True)
class Prompts(Settings):
    """Which of the given prompts are used."""

    length: int | None = option(None, "Use only pairs of this many tokens.", at_least=1)
    examples: int | None = option(None, "Use only this many pairs, drawn at random.", at_least=1)
    seed: int = option(0, "Seed of every draw.")


@dataclass(frozen=True, kw_only=True)
class Nodes(Prompts):
    """What `attribute` computes: the metric, what clean is compared with, gradients, and what may be a node."""

    metric: Any = option(
        "logit_difference",
        "What is attributed; from Python also a function of logits.",
        choices=METRICS,
        error=MetricError,
    )
    targets: Any = option(
        "metric",
        "What to explain: metric, logits (the likeliest next tokens), token texts, features such as mlp_out.3/f17@5, or"
        " directions as SITE@POS=FILE.npy; may be repeated.",
        command_line=False,
    )
    baseline: str = option("corrupted", "What clean is compared with.", choices=BASELINES)
    method: str = option("gradient", "The gradient at the clean run, or integrated from the baseline.", choices=METHODS)
    steps: int = option(10, "Steps of integrated gradients.", at_least=1)
    rule: str = option("gauss-legendre", "Quadrature rule of integrated gradients.", choices=RULES)
    attention: str = option("node", "How to treat attention without a dictionary.", choices=TREATMENTS)
    mlp: str = option("node", "How to treat MLPs without a dictionary.", choices=TREATMENTS)
    errors_as_targets: bool = option(False, "Errors are targets too: trace what they read.")
    align: str = option(
        "position", "What is one node in several pairs: the same position, or the same role.", choices=ALIGN
    )


@dataclass(frozen=True, kw_only=True)
class Edges(Settings):
    """Which nodes are candidates, how edges are computed, and which stay."""

    positions: str = option(
        "each", "Nodes at each position, or one node per feature: the sum over positions.", choices=POSITIONS
    )
    qk: str = option(
        "derivative", "q and k edges by derivative, or by ablating each source in the softmax.", choices=QK
    )
    max_nodes: int = option(1000, "Candidates: the nodes with the largest attribution.", at_least=1)
    max_traced: int | None = option(
        None, "Trace the inputs of so many features, the most influential first.", at_least=1
    )
    edge_threshold: float = option(
        0.001, "Smallest |weight| of an edge, as a fraction of the metric's difference.", at_least=0, at_most=1,
        fraction_of="the metric's difference",
    )  # fmt: skip
    relative_threshold: float = option(
        0.0,
        "Smallest share of an edge in what its target reads.",
        at_least=0,
        at_most=1,
        fraction_of="what the target reads",
    )
    top_k: int | None = option(None, "At most this many inputs per node.", at_least=1)
    node_influence: float | None = option(
        None, "Keep the nodes that carry this share of all influence.", above=0, at_most=1
    )
    edge_influence: float | None = option(None, "Keep the edges that carry this share of it.", above=0, at_most=1)


@dataclass(frozen=True, kw_only=True)
class Discovery(Edges, Nodes):
    """Everything that decides what graph `discover` finds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.qk == "ablate" and "frozen" in (self.attention, self.mlp):
            raise CircuitGraphError(
                "qk 'ablate' does not pass frozen attention or MLPs; take qk 'derivative', or 'node'"
            )


@dataclass(frozen=True, kw_only=True)
class Compute(Settings):
    """How things are computed. It changes results by rounding only; a graph keeps the backend that ran."""

    backend: str = option("auto", "Backend of the attribution kernel.", choices=BACKENDS)
    memory: float = option(1.0, "GiB that input directions and what they read may take at once.", above=0)


@dataclass(frozen=True, kw_only=True)
class Pruning(Settings):
    """What `prune` leaves of a graph."""

    node_threshold: float = option(
        0.0, "Smallest |attribution| of a node, as a fraction of the metric's difference.", at_least=0,
        fraction_of="the metric's difference",
    )  # fmt: skip
    edge_threshold: float = option(
        0.0, "Smallest |weight| of an edge, as a fraction of the metric's difference.", at_least=0,
        fraction_of="the metric's difference",
    )  # fmt: skip
    top_k: int | None = option(None, "At most this many inputs per node.", at_least=1)
    max_nodes: int | None = option(None, "At most this many nodes, the strongest and the metric.", at_least=2)


@dataclass(frozen=True, kw_only=True)
class DictionaryChecks(Prompts):
    """What `check` looks at."""

    metric: Any = option(
        "logit_difference", "The metric whose effect the error nodes carry.", choices=METRICS, error=MetricError
    )
    baseline: str = option("corrupted", "What clean is compared with for that effect.", choices=BASELINES)
    n_listed: int = option(3, "Tokens to list per site where the error carries most of the effect.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Evaluating(Prompts):
    """What `evaluate` measures of a circuit of features."""

    n_patched: int = option(50, "Strongest nodes to patch one by one.", at_least=0)
    n_edges: int = option(200, "Strongest connected pairs of nodes to measure.", at_least=0)
    n_dropped: int = option(200, "Weakest nodes to drop one by one.", at_least=0)
    curves: bool = option(True, "Circuits of growing size; noising.")
    top_k: int = option(10, "How many of the strongest to compare, estimated against measured.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Measuring(Prompts):
    """What `measure` writes into a graph."""

    n_patched: int = option(1000, "Strongest nodes to patch one by one.", at_least=0)
    n_edges: int = option(1000, "Strongest connected pairs of nodes to measure.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class ComponentEvaluating(Prompts):
    """What `evaluate` measures of a circuit of heads and MLPs."""

    metric: Any = option("logit_difference", "What the circuit is judged by.", choices=METRICS, error=MetricError)
    selection: str = option("top-n", "How a graph of heads and MLPs chooses its edges.", choices=("top-n", "greedy"))
    curves: bool = option(True, "Circuits of growing size.")


@dataclass(frozen=True, kw_only=True)
class Intervening(Prompts):
    """What `intervene` reports."""

    metric: Any = option("logit_difference", "The metric to report.", choices=METRICS, error=MetricError)
    top_k: int = option(5, "Likeliest next tokens to list.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class Examples(Settings):
    """What `examples` keeps of a corpus."""

    n_top: int = option(20, "Windows to keep of each feature, the most active.", at_least=1)
    n_tokens: int = option(64, "Tokens of a window, BOS included.", at_least=2)
    batch_size: int = option(16, "Windows to run at once.", at_least=1)
    seed: int = option(0, "Seed of the draw among the windows where a feature is active.")


@dataclass(frozen=True, kw_only=True)
class Demo(Settings):
    """What `demo` finds a circuit of."""

    task: str = option("ioi", "What the embedded model is asked to do: ioi, greater-than, gendered-pronoun, ... ")
    n_pairs: int = option(1, "Prompt pairs to average over.", at_least=1)
    align: str = option(
        "position", "role: prompts of every form of the task in one graph; position: of one form.", choices=ALIGN
    )
    max_nodes: int = option(200, "Nodes that the circuit may have, the metric included.", at_least=2)
    seed: int = option(0, "Seed of the prompt pairs.")


S = TypeVar("S", bound=Settings)


def resolve(kind: type[S], given: Settings | None, changes: Mapping[str, Any]) -> S:
    """Settings of this kind: the given ones (or the defaults) with these keywords over them.

    Raises CircuitGraphError for a keyword that is no setting, with the nearest one that is.
    """
    if given is not None and not isinstance(given, kind):
        raise CircuitGraphError(
            f"settings is of type {type(given).__name__}; expected {kind.__name__}(...), or its fields as keywords"
        )
    known = [each.name for each in fields(kind)]
    for name in changes:
        if name not in known:
            raise CircuitGraphError(
                f"{name!r} is no setting; expected one of {', '.join(known)}.{did_you_mean(name, known)}"
            )
    base = {} if given is None else {name: getattr(given, name) for name in known if hasattr(given, name)}
    return kind(**{**base, **changes})


def refuse_metric_beside_targets(chosen: Nodes, changes: Mapping[str, Any]) -> None:
    """MetricError where a metric was asked for that would go unused, since targets are explained in its place."""
    if "metric" in changes and not (isinstance(chosen.targets, str) and chosen.targets == "metric"):
        raise MetricError(
            f"metric {chosen.metric!r} and targets {chosen.targets!r} are both given; targets are explained in place"
            " of a metric, so give one of them"
        )


def as_record(settings: Settings, *, of: type[Settings] | None = None) -> dict[str, Any]:
    """The settings, or those that belong to the class `of`, as values by name."""
    return {each.name: getattr(settings, each.name) for each in fields(of or settings)}


def type_of(each: dataclasses.Field[Any]) -> type:
    """The type of a field's values: bool, int, float, or str where anything goes."""
    name = str(each.type).partition(" |")[0]
    return {"bool": bool, "int": int, "float": float}.get(name, str)


def _check(each: dataclasses.Field[Any], value: Any) -> None:
    facts, kind, error = each.metadata, type_of(each), each.metadata["error"]
    if value is None and each.default is None:
        return
    if facts["choices"] and not (callable(value) and each.type == "Any"):
        if not isinstance(value, str) or value not in facts["choices"]:
            hint = did_you_mean(str(value), facts["choices"])
            or_function = ", or a function from logits [batch, pos, vocab] to [batch]" if each.name == "metric" else ""
            raise error(
                f"{each.name} {value!r} is unknown; expected one of {', '.join(facts['choices'])}{or_function}.{hint}"
            )
    elif kind is bool and not isinstance(value, bool):
        raise error(f"{each.name} is {value!r}; expected True or False")
    elif kind in (int, float):
        _check_number(each, value, kind)


def _check_number(each: dataclasses.Field[Any], value: Any, kind: type) -> None:
    facts = each.metadata
    number = numbers.Integral if kind is int else numbers.Real
    fits = isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
    fits = fits and (facts["at_least"] is None or value >= facts["at_least"])
    fits = fits and (facts["above"] is None or value > facts["above"])
    fits = fits and (facts["at_most"] is None or value <= facts["at_most"])
    if fits:
        return
    expected = "a whole number" if kind is int else "a number"
    expected += "" if facts["at_least"] is None else f" >= {facts['at_least']}"
    expected += "" if facts["above"] is None else f" above {facts['above']}"
    expected += "" if facts["at_most"] is None else f" and at most {facts['at_most']}"
    expected += f", as a fraction of {facts['fraction_of']}" if facts["fraction_of"] else ""
    raise facts["error"](f"{each.name} is {value!r}; expected {expected}")
