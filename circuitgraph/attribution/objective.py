"""What callers ask a graph to explain, as an `Objective`: from their words, a command line, or a graph's record."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitgraph.attribution.targets import LogitTarget, Objective, Probe, SiteTarget, Target, TargetSpec
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.errors import CircuitGraphError, GraphError, MetricError, did_you_mean
from circuitgraph.models.model import Model
from circuitgraph.nodes import DICTIONARY_SITES, Node, Site
from circuitgraph.paths.input_paths import check_input_site

LOGIT_MASS = 0.95
MAX_LOGITS = 10


def find_objective(
    model: Model,
    dictionaries: Dictionaries,
    specs: str | Sequence[TargetSpec] | Mapping[TargetSpec, float],
    n_pos: int,
    *,
    one_form: bool = True,
) -> Objective | None:
    """What `settings.Nodes.targets` means: None for "metric", and for "logits", which are known once the model has run.

    Args:
        model: The model.
        dictionaries: Its dictionaries, of which a target may be a feature.
        specs: The setting.
        n_pos: Tokens per prompt.
        one_form: Whether all prompts have the same aligned positions, which targets inside the model need.

    Raises MetricError or CircuitGraphError for what means nothing.
    """
    if isinstance(specs, str) and specs in ("metric", "logits"):
        return None
    if not isinstance(specs, Mapping | Sequence) or isinstance(specs, str):
        given = repr(specs) if isinstance(specs, str) else f"one {type(specs).__name__}"
        raise CircuitGraphError(
            f"targets is {given}; expected 'metric', 'logits' or a list such as [' Mary', 'mlp_out.3/f17@5']"
        )
    objective = given_targets(model, dictionaries, specs, n_pos)
    if objective.reads and not one_form:
        raise CircuitGraphError(
            f"target {objective.targets[0].name!r} stands at one position, and these prompts differ in form;"
            " build one graph per form of prompt (--length)"
        )
    return objective


def given_targets(
    model: Model,
    dictionaries: Dictionaries,
    specs: Sequence[TargetSpec] | Mapping[TargetSpec, float],
    n_pos: int,
) -> Objective:
    """What these words mean, with the weights of a mapping, or with equal weights that sum to 1.

    Args:
        model: The model.
        dictionaries: Its dictionaries, of which a target may be a feature.
        specs: The targets, with weights or without.
        n_pos: Tokens per prompt.

    Raises MetricError for a text that is neither one known token nor a feature of a dictionary at a position of the
    prompt, for a target that is given twice, and for none at all.
    """
    if not specs:
        raise MetricError("targets is an empty list; expected token texts such as ' Mary', or features, or probes")
    targets = [_target(model, dictionaries, spec, n_pos) for spec in specs]
    objective = Objective(tuple(targets), (1 / len(targets),) * len(targets))
    names, nodes = [target.name for target in targets], objective.nodes(n_pos)
    for name, node in zip(names, nodes, strict=True):
        if names.count(name) > 1 or nodes.count(node) > 1:
            raise MetricError(f"target {name!r} is given twice; give every target once, and every probe a name")
    if not isinstance(specs, Mapping):
        return objective
    weights = tuple(specs.values())
    for target, weight in zip(targets, weights, strict=True):
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < abs(weight) < float("inf"):
            raise MetricError(
                f"the weight of target {target.name!r} is {weight!r}; expected a finite number other than 0"
            )
    return Objective(objective.targets, tuple(map(float, weights)))


def likeliest_logits(
    model: Model, logits: Float[Tensor, "batch pos vocab"], *, mass: float = LOGIT_MASS, limit: int = MAX_LOGITS
) -> Objective:
    """The logits of the most likely next tokens, weighted by their probabilities, which are scaled to sum to 1.

    Args:
        model: The model.
        logits: Of the clean run. The last position counts, and probabilities are means over the examples.
        mass: Take tokens until they have this probability together,
        limit: but at most so many.
    """
    top = logits[:, -1].softmax(-1).mean(0).topk(min(limit, logits.shape[-1]))
    n = min(int((top.values.cumsum(0) < mass).sum()) + 1, len(top.values))
    chosen = top.values[:n] / top.values[:n].sum()
    return objective_of_logits(model, top.indices[:n].tolist(), chosen.tolist())


def objective_of_logits(model: Model, tokens: Sequence[int], weights: Sequence[float]) -> Objective:
    """The logits of these token ids."""
    names = model.token_strings(list(tokens))
    return Objective(tuple(LogitTarget(n, (t,)) for n, t in zip(names, tokens, strict=True)), tuple(weights))


def recorded_objective(
    model: Model, dictionaries: Dictionaries, rows: Sequence[Mapping[str, Any]], n_pos: int
) -> Objective:
    """The objective that `Objective.record` wrote into a graph. GraphError for a record that it did not write."""
    targets: list[Target] = []
    try:
        for row in rows:
            if "tokens" in row:
                targets.append(LogitTarget(row["name"], tuple(row["tokens"]), tuple(row["coefficients"])))
            elif "node" in row:
                targets.append(_feature(model, dictionaries, row["node"], n_pos))
            else:
                probe = Probe(row["site"], torch.tensor(row["vector"], dtype=torch.float64), row["pos"], row["name"])
                targets.append(_probe(model, probe, n_pos))
        return Objective(tuple(targets), tuple(float(row["weight"]) for row in rows))
    except (KeyError, TypeError, ValueError) as error:
        raise GraphError(f"the graph's targets cannot be read ({error!r}); build the graph again") from None


def read_targets(texts: Sequence[str], weights: Sequence[float] = ()) -> Any:
    """`settings.Nodes.targets` from the words of a command line.

    Args:
        texts: metric, logits, token texts, features, or directions as SITE@POS=FILE.npy.
        weights: One per target, or none for equal ones.

    Raises MetricError for a file that does not hold a vector, or another number of weights.
    """
    if tuple(texts) in (("metric",), ("logits",)):
        if weights:
            raise MetricError(f"targets {texts[0]!r} has weights of its own; give weights with named targets only")
        return texts[0]
    specs = [_read_probe(text) or text for text in texts]
    if not weights:
        return specs
    if len(weights) != len(specs):
        raise MetricError(f"{len(specs)} targets have {len(weights)} weights; expected one weight per target")
    return dict(zip(specs, weights, strict=True))


def _read_probe(text: str) -> Probe | None:
    match = re.fullmatch(r"(?P<site>[a-z_0-9]+\.\d+)@(?P<pos>-?\d+)=(?P<path>.+)", text)
    if match is None:
        return None
    path = Path(match["path"])
    try:
        vector = np.load(path, allow_pickle=False)
        return Probe(match["site"], torch.from_numpy(vector), int(match["pos"]), path.stem)
    except (OSError, ValueError, TypeError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no array of numbers"
        raise MetricError(
            f"target {text!r}: {path} cannot be read ({reason}); expected numpy.save of a vector"
        ) from None


# one target -------------------------------------------------------------------------------------------------------


def _target(model: Model, dictionaries: Dictionaries, spec: Any, n_pos: int) -> Target:
    if isinstance(spec, Probe):
        return _probe(model, spec, n_pos)
    if isinstance(spec, tuple) and len(spec) == 2:
        right, wrong = (_token(model, text) for text in spec)
        if right == wrong:
            raise MetricError(f"target {spec!r} is a logit less itself; expected two different tokens")
        return LogitTarget(f"{spec[0]} -{spec[1]}", (right, wrong), (1.0, -1.0))
    if isinstance(spec, str) and re.fullmatch(r"[a-z_0-9.]+/f[^/@]*@.*", spec):
        return _feature(model, dictionaries, spec, n_pos)
    token = _token(model, spec)
    return LogitTarget(model.token_strings([token])[0], (token,))


def _token(model: Model, text: Any) -> int:
    if not isinstance(text, str):
        raise MetricError(
            f"a target is of type {type(text).__name__}; expected a token's text such as ' Mary', a feature such as"
            " 'mlp_out.3/f17@5', two texts, or a Probe"
        )
    tokens = model.continuation(text)
    if len(tokens) != 1:
        raise MetricError(
            f"target {text!r} is {len(tokens)} tokens; expected one token, with its leading space if it has one"
        )
    if tokens[0] == model.unknown_token:
        raise MetricError(f"target {text!r} is not in the model's vocabulary")
    return tokens[0]


def _feature(model: Model, dictionaries: Dictionaries, text: str, n_pos: int) -> SiteTarget:
    try:
        node = Node.parse(text)
    except GraphError as error:
        raise MetricError(f"target {text!r} is no feature: {error}") from None
    dictionary = dictionaries.get(node.site)
    if node.kind != "feature" or dictionary is None:
        known = list(map(str, dictionaries))
        raise MetricError(
            f"target {text!r} is no feature of a given dictionary; their sites are {', '.join(known) or 'none'}."
            f"{did_you_mean(str(node.site), known)}"
        )
    feature = node.feature or 0
    if feature >= dictionary.d_sae:
        raise MetricError(f"target {text!r}: dictionary {dictionary.name} has features 0-{dictionary.d_sae - 1}")
    vector = dictionary.input_directions(torch.tensor([feature], device=dictionary.weights.b_enc.device))[0]
    return _site_target(model, text, dictionary.reads, _position(node.pos, n_pos, text), vector, dictionary, feature)


def _probe(model: Model, probe: Probe, n_pos: int) -> SiteTarget:
    site = probe.site if isinstance(probe.site, Site) else Site.parse(probe.site)
    name = probe.name or f"direction at {site}@{probe.pos}"
    vector = torch.as_tensor(probe.vector).detach()  # a weight of a trained model may ask for gradients
    if site.layer is None or site.kind not in DICTIONARY_SITES or not model.has(site):
        raise MetricError(
            f"target {name!r}: a probe cannot read {site}; expected one of {', '.join(DICTIONARY_SITES)}"
            f" with a layer below {model.n_layers}"
        )
    if vector.shape != (model.width(site),) or not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
        raise MetricError(
            f"target {name!r}: the vector has shape {tuple(vector.shape)}; expected {model.width(site)} finite"
            " numbers, not all 0"
        )
    vector = vector.to(model.device, model.layout.dtype)
    return _site_target(model, name, site, _position(probe.pos, n_pos, name), vector)


def _position(pos: Any, n_pos: int, name: str) -> int:
    if not isinstance(pos, int) or not -n_pos <= pos < n_pos:
        raise MetricError(f"target {name!r}: position {pos!r} is not in the prompts, which have {n_pos} tokens")
    return pos % n_pos


def _site_target(
    model: Model,
    name: str,
    site: Site,
    pos: int,
    vector: Tensor,
    dictionary: Dictionary | None = None,
    feature: int | None = None,
) -> SiteTarget:
    check_input_site(model, site)
    norm, behind = model.norm(site, "ln2"), Site("mlp_in", site.layer)
    if site.kind != "ln2_normalized" or norm is None or not model.has(behind):
        return SiteTarget(name, site, pos, vector, site, dictionary=dictionary, feature=feature)
    if norm.gain is not None and bool((norm.gain == 0).any()):
        raise CircuitGraphError(
            f"target {name!r}: the norm in front of the MLP of layer {site.layer} has a gain of 0, so what stands"
            " before the gain cannot be measured; expected a model without"
        )
    return SiteTarget(name, site, pos, vector, behind, norm.gain, norm.bias, dictionary, feature)
