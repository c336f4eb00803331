"""Neurons as a dictionary: each feature is one coordinate of a site, so the reconstruction is exact."""

from __future__ import annotations

import weakref

import torch

from circuitgraph.dictionaries.build import Request
from circuitgraph.dictionaries.dictionary import Dictionary, check_fit
from circuitgraph.dictionaries.sources import NEURONS, agreed_site
from circuitgraph.errors import DictionaryError
from circuitgraph.nodes import Site
from circuitgraph_kernels import SaeWeights

# The identities in use, by size, dtype and device; every layer shares one.
_IDENTITIES: weakref.WeakValueDictionary[tuple[int, torch.dtype, torch.device], SaeWeights]
_IDENTITIES = weakref.WeakValueDictionary()


def neurons(kind: str | None, request: Request) -> list[Dictionary]:
    """The neurons of one site, or of one kind of site in every layer: acts = x, x_hat = acts.

    Args:
        kind: The kind of site, where the request names no site.
        request: What to load them for.
    """
    model = request.model
    if request.site is None and kind is None:
        raise DictionaryError(
            f"dictionary {NEURONS} does not say where it reads; expected for instance mlp_post.3={NEURONS}, or"
            f" mlp_post={NEURONS} for every layer"
        )
    if request.site is None:
        sites = [Site(str(kind), layer) for layer in range(model.n_layers)]
    else:
        given = agreed_site(NEURONS, None, request.site)
        if given.reads != given.writes:
            raise DictionaryError(
                f"dictionary {given}={NEURONS} reads and writes different sites; expected SITE={NEURONS}"
            )
        sites = [given.reads]
    dictionaries = []
    for site in sites:
        dictionary = Dictionary(_identity(model.width(site), request), site, site, f"{site}={NEURONS}")
        check_fit(dictionary, model)
        dictionaries.append(dictionary)
    return dictionaries


def _identity(size: int, request: Request) -> SaeWeights:
    key = size, request.model.dtype, request.model.device
    weights = _IDENTITIES.get(key)
    if weights is None:
        eye = torch.eye(size, dtype=key[1], device=key[2])
        weights = SaeWeights(eye.T, eye[0] * 0, eye, eye[0] * 0, activation="identity")
        _IDENTITIES[key] = weights
    return weights
