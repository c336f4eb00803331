"""Neurons as a dictionary: every feature is one coordinate of a site, and nothing is left as an error.

In comes a site, or a kind of site for every layer; out come Dictionaries whose weights are the identity, one per size.
This module reads no file.
"""

from __future__ import annotations

import weakref

import torch

from circuitgraph.dictionaries.build import Request
from circuitgraph.dictionaries.dictionary import Dictionary, check_fit
from circuitgraph.dictionaries.sources import NEURONS
from circuitgraph.errors import DictionaryError
from circuitgraph.nodes import Site
from circuitgraph_kernels import SaeWeights

# The identities that someone holds, by size, dtype and device: every layer shares one.
_HELD: weakref.WeakValueDictionary[tuple[int, torch.dtype, torch.device], SaeWeights] = weakref.WeakValueDictionary()


def neurons(kind: str | None, request: Request) -> list[Dictionary]:
    """acts = x and x_hat = acts at the place of the request, or at the sites of this kind in every layer."""
    model, place = request.model, request.place
    if place is not None and place.reads != place.writes:
        raise DictionaryError(f"dictionary {place}={NEURONS} reads and writes different sites; expected SITE={NEURONS}")
    if place is None and kind is None:
        raise DictionaryError(
            f"dictionary {NEURONS} does not say where it reads; expected for instance mlp_post.3={NEURONS}, or"
            f" mlp_post={NEURONS} for every layer"
        )
    sites = [place.reads] if place else [Site(str(kind), layer) for layer in range(model.n_layers)]
    found = []
    for site in sites:
        dictionary = Dictionary(_identity(model.width(site), request), site, site, f"{site}={NEURONS}")
        check_fit(dictionary, model)
        found.append(dictionary)
    return found


def _identity(size: int, request: Request) -> SaeWeights:
    key = size, request.model.dtype, request.model.device
    weights = _HELD.get(key)
    if weights is None:
        eye = torch.eye(size, dtype=key[1], device=key[2])
        weights = SaeWeights(eye.T, eye[0] * 0, eye, eye[0] * 0, activation="identity")
        _HELD[key] = weights
    return weights
