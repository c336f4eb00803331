"""What edges are compared with: blocks written out with Hugging Face's own modules, and the real model with parts
frozen.

`FrozenBlocks` gives attention and MLPs as functions of the stream, with norm scales frozen, and what reaches every site
when one source at a time is taken out.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import torch

from circuitgraph.attribution.treatment import node_sites
from circuitgraph.nodes import Site
from support.close import assert_close
from support.families import FAMILIES, hf_blocks

_GPT2 = {"ln1": "ln_1", "ln2": "ln_2", "attn": "attn", "o": "c_proj", "down": "c_proj"}
_NEOX = {
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "attn": "attention",
    "o": "dense",
    "down": "dense_4h_to_h",
}
_DECODER = _NEOX | {"attn": "self_attn", "o": "o_proj", "down": "down_proj"}
_GEMMA = _DECODER | {
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
}
_NAMES = {"gpt2": _GPT2, "gpt_neox": _NEOX, "gemma2": _GEMMA, "gemma3_text": _GEMMA}


@dataclass
class FrozenNorm:
    """y = (x - mean) / scale * gain + bias with the scale of the run in which `seen` came in."""

    module: torch.nn.Module
    seen: torch.Tensor

    def __call__(self, x, *, gain=True):
        kind, module, x0 = type(self.module).__name__, self.module, self.seen
        if kind == "LayerNorm":
            y = (x - x.mean(-1, keepdim=True)) / (x0.var(-1, unbiased=False, keepdim=True) + module.eps).sqrt()
            return y * module.weight + module.bias if gain else y
        eps = getattr(module, "variance_epsilon", None) or module.eps
        y = x / (x0.square().mean(-1, keepdim=True) + eps).sqrt()
        return y * (module.weight + ("Gemma" in kind)) if gain else y


class FrozenBlocks:
    """The blocks of a plain Hugging Face model at a run of tokens [1, pos]: functions of the stream [1, pos, d_model].

    seen: what came into each norm in that run, (name, layer) -> tensor.
    """

    def __init__(self, model, tokens):
        self.model, self.kind = model, model.config.model_type
        self.names = _NAMES.get(self.kind, _DECODER)
        self.blocks, self.seen, self.given = hf_blocks(model), {}, {}
        handles = []
        for layer in range(len(self.blocks)):
            for name in ("ln1", "ln1_post", "ln2", "ln2_post"):
                if name in self.names:
                    handles.append(self.part(layer, name).register_forward_pre_hook(self._see((name, layer))))
            attn = self.part(layer, "attn")
            for name in ("q_norm", "k_norm"):
                if hasattr(attn, name):
                    handles.append(getattr(attn, name).register_forward_pre_hook(self._see((name, layer))))
            handles.append(attn.register_forward_pre_hook(self._give(layer), with_kwargs=True))
        model(tokens)
        for handle in handles:
            handle.remove()

    def _see(self, key):
        return lambda module, args: self.seen.__setitem__(key, args[0].detach())

    def _give(self, layer):
        return lambda module, args, kwargs: self.given.__setitem__(layer, kwargs)

    def part(self, layer, name):
        """The module of that name in the layer."""
        return getattr(self.blocks[layer], self.names[name])

    def norm(self, layer, name):
        """ln1, ln2, ln1_post or ln2_post of the layer, frozen."""
        return FrozenNorm(self.part(layer, name), self.seen[name, layer])

    def attention(self, layer, stream, pattern=None):
        """(z [pos, heads * d_head], attn_out [pos, d_model]); pattern [1, heads, pos, pos]: given instead of
        computed."""
        attn, given = self.part(layer, "attn"), self.given[layer]
        q, k, v = self._projected(attn, self.norm(layer, "ln1")(stream), layer)
        if given.get("position_embeddings") is not None:
            rotate = importlib.import_module(type(attn).__module__).apply_rotary_pos_emb
            q, k = rotate(q, k, *given["position_embeddings"])
        k, v = (y.repeat_interleave(q.shape[1] // k.shape[1], 1) for y in (k, v))
        if pattern is None:
            scores = q @ k.transpose(-1, -2) * attn.scaling
            cap = getattr(self.model.config, "attn_logit_softcapping", None)
            if cap is not None:
                scores = cap * torch.tanh(scores / cap)
            pattern = (scores + given["attention_mask"]).softmax(-1)
        z = (pattern @ v).transpose(1, 2).flatten(2)
        out = getattr(attn, self.names["o"])(z)
        return z[0], (self.norm(layer, "ln1_post")(out) if "ln1_post" in self.names else out)[0]

    def _projected(self, attn, x, layer):
        """q [1, heads, pos, d_head], k and v [1, n_kv, pos, d_head] before the rotation."""
        if self.kind == "gpt2":
            q, k, v = (y.unflatten(-1, (attn.num_heads, -1)) for y in attn.c_attn(x).chunk(3, -1))
        elif self.kind == "gpt_neox":
            q, k, v = attn.query_key_value(x).unflatten(-1, (-1, 3 * attn.head_size)).chunk(3, -1)
        else:
            parts = (getattr(attn, f"{name}_proj")(x) for name in "qkv")
            q, k, v = (y.unflatten(-1, (-1, attn.head_dim)) for y in parts)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if hasattr(attn, "q_norm"):
            q = FrozenNorm(attn.q_norm, self._by_head("q_norm", layer, q))(q)
            k = FrozenNorm(attn.k_norm, self._by_head("k_norm", layer, k))(k)
        return q, k, v

    def _by_head(self, name, layer, like):
        """What came into a norm per head, [1, heads, pos, d_head]; qwen3 norms before heads are moved to the front."""
        seen = self.seen[name, layer]
        return seen if seen.shape == like.shape else seen.transpose(1, 2)

    def mlp(self, layer, stream):
        """(mlp_post [pos, d_mlp], mlp_out [pos, d_model]) of the stream before the MLP's norm."""
        mlp, found = self.blocks[layer].mlp, {}
        down = getattr(mlp, self.names["down"])
        handle = down.register_forward_pre_hook(lambda module, args: found.__setitem__("post", args[0]))
        out = mlp(self.norm(layer, "ln2")(stream))
        handle.remove()
        return found["post"][0], (self.norm(layer, "ln2_post")(out) if "ln2_post" in self.names else out)[0]

    def behind(self, site):
        """The constant added between z or mlp_post and the stream, [d_model]; zeros elsewhere."""
        part = None
        if site.kind == "z":
            part = getattr(self.part(site.layer, "attn"), self.names["o"])
        elif site.kind == "mlp_post":
            part = getattr(self.blocks[site.layer].mlp, self.names["down"])
        bias = getattr(part, "bias", None)
        if bias is None:
            return torch.zeros(self.model.config.hidden_size, dtype=torch.float64)
        assert "ln1_post" not in self.names, "no family here has both an output bias and a post-norm"
        return bias


def change_of(case, node):
    """site -> what of x there is this node's, clean minus corrupted, [d]; from the dictionaries alone, one example."""

    def change(of):
        return (of(case.clean.values) - of(case.base.values))[0, node.pos]

    if node.kind == "embedding":
        return {node.site: change(lambda run: run[node.site])}
    if node.kind == "feature":
        d = case.dictionaries[node.site]
        row = change(lambda run: d.encode(run[d.reads]))[node.feature] * d.weights.W_dec[node.feature]
        return {site: row[d.columns(site)] for site in d.sites}
    writers = [d for d in case.dictionaries.values() if node.site in d.sites]
    total = torch.zeros_like(case.clean.values[node.site][0, 0])
    for d in writers:
        if node.kind == "bias":
            if d.weights.normalize != "none":
                total = total + change(lambda run, d=d: d.bias(run[d.reads])[..., d.columns(node.site)])
        else:
            total = total - change(
                lambda run, d=d: d.decode(d.encode(run[d.reads]), run[d.reads])[..., d.columns(node.site)]
            )
    return {node.site: total if node.kind == "bias" else total + change(lambda run: run[node.site])}


def run_without(case, nodes):
    """(read, stream): clean minus what is there when the row's node is taken out, [nodes, pos, d] each.

    Patterns, norm scales and every other component are frozen at the clean run; skip connections pass on what reaches
    them. read: at each site, before anything is replaced there. stream: what the attention (key "attention", layer) and
    the MLP ("mlp", layer) of each layer and the metric ("metric", n_layers) get.
    """
    model, clean, rows = case.model, case.clean.values, len(nodes)
    changes = [change_of(case, node) for node in nodes]
    after = {}

    def replace_at(site):
        gone = clean[site].repeat(rows, 1, 1)
        for row, (node, change) in enumerate(zip(nodes, changes, strict=True)):
            if site in change:
                gone[row, node.pos] -= change[site]
        skips = [d for d in case.dictionaries.values() if d.W_skip is not None and d.writes == site]

        def edit(x, recorded):
            passed = [(recorded[d.reads] - clean[d.reads]) @ d.W_skip for d in skips]
            after[site] = gone + sum(passed) if passed else gone
            return after[site]

        return edit

    replace = {site: replace_at(site) for site in (Site("embed"), *node_sites(model, case.dictionaries))}
    for layer in range(model.n_layers):
        for kind in ("pattern", "ln1_scale", "ln1_post_scale", "ln2_scale", "ln2_post_scale"):
            site = Site(kind, layer)
            if model.has(site):
                replace[site] = lambda x, recorded, site=site: clean[site].expand(rows, *clean[site].shape[1:])
    sites = {
        Site(kind, layer) for kind in ("z", "attn_out", "mlp_out", "resid_post") for layer in range(model.n_layers)
    }
    sites |= {Site("embed"), *(d.reads for d in case.dictionaries.values())}
    record = sorted(sites, key=lambda site: site.depth)
    _, recorded = model.run(case.tokens.clean.repeat(rows, 1), record=record, replace=replace)
    read = {site: clean[site] - value for site, value in recorded.items()}
    written = set(case.dictionaries.written)

    def reached(site):
        return clean[site] - after[site] if site in after else read[site]

    stream, arrived = {}, reached(Site("embed"))
    for layer in range(model.n_layers):
        if Site("resid_pre", layer) in written:
            arrived = reached(Site("resid_pre", layer))
        middle = arrived + reached(Site("attn_out", layer))
        stream["attention", layer], stream["mlp", layer] = arrived, arrived if model.parallel else middle
        end = Site("resid_post", layer)
        arrived = middle + reached(Site("mlp_out", layer))
        assert_close(read[end], arrived, dtype=FAMILIES[model.name].precision)
        if end in written:
            arrived = reached(end)
    stream["metric", model.n_layers] = arrived
    return read, stream
