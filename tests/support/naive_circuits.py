"""Circuits of nodes, run naively: one forward pass per circuit, position by position and feature by feature.

In come a model, dictionaries that each write one site, and a case of test_laws; out come metrics. PyTorch hooks on the library's
modules and the dictionaries' own encode and decode: nothing of splices, masks and batches.
"""

from __future__ import annotations

import torch

from circuitgraph.nodes import Node, Site


class Naive:
    """The same quantities by PyTorch hooks on the library's modules: one forward per circuit, position by position."""

    def __init__(self, model, dictionaries, case):
        self.model, self.dictionaries, self.case = model, dictionaries, case
        layers = range(model.n_layers)
        self.bare = {Site(kind, i) for kind in ("z", "mlp_out") for i in layers} - set(dictionaries)
        self.base = self._values(case.tokens.corrupted)

    def _values(self, tokens):
        sites = {Site("embed"), *self.bare, *self.dictionaries, *(d.reads for d in self.dictionaries.values())}
        return self.model.run(tokens, record=sorted(sites, key=lambda s: s.depth))[1]

    def metric(self, keeps):
        """The metric, mean over the examples, where keeps(node) says which nodes run freely."""
        seen, handles = {}, []
        modules = self.model.library.hook_dict

        def at(site, function):
            module = modules[self.model.layout.hook_name(site)]
            handles.append(module.register_forward_hook(lambda m, a, value: function(value)))

        def read(site):
            return lambda value: seen.__setitem__(site, value.flatten(2) if value.ndim == 4 else value)

        def embed(value):
            value = value.clone()
            for pos in range(value.shape[1]):
                if not keeps(Node("embedding", Site("embed"), pos)):
                    value[:, pos] = self.base[Site("embed")][:, pos]
            return value

        def write(site, dictionary):
            def edit(value):
                x = value.flatten(2) if value.ndim == 4 else value
                here = x if dictionary.reads == site else seen[dictionary.reads]
                acts, base_acts = dictionary.encode(here), dictionary.encode(self.base[dictionary.reads])
                error = x - dictionary.decode(acts, here)
                base_error = self.base[site] - dictionary.decode(base_acts, self.base[dictionary.reads])
                out = torch.empty_like(x)
                for pos in range(x.shape[1]):
                    mixed = base_acts[:, pos].clone()
                    for feature in range(dictionary.d_sae):
                        if keeps(Node("feature", site, pos, feature)):
                            mixed[:, feature] = acts[:, pos, feature]
                    kept = error if keeps(Node("error", site, pos)) else base_error
                    out[:, pos] = dictionary.decode(mixed, here[:, pos]) + kept[:, pos]
                return out.reshape(value.shape)

            return edit

        def component(site):
            def edit(value):
                out = value.flatten(2) if value.ndim == 4 else value.clone()
                for pos in range(out.shape[1]):
                    if not keeps(Node("error", site, pos)):
                        out[:, pos] = self.base[site][:, pos]
                return out.reshape(value.shape)

            return edit

        at(Site("embed"), embed)
        for site in self.bare:
            at(site, component(site))
        for site, dictionary in self.dictionaries.items():
            if dictionary.reads != site:
                at(dictionary.reads, read(dictionary.reads))
            at(site, write(site, dictionary))
        try:
            logits = self.model.library(self.case.tokens.clean)
        finally:
            for handle in handles:
                handle.remove()
        return float(self.case.metric(logits).mean())
