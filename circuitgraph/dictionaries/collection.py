"""The dictionaries of one model as one value: who writes a site, what they reconstruct there and what they miss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.errors import DictionaryError
from circuitgraph.nodes import Site


class Dictionaries(Mapping[Site, Dictionary]):
    """Dictionaries by the first site that each writes, in forward order. It is read like a dict and never changed.

    Args:
        dictionaries: Dictionaries, or a mapping from the sites that they write.

    Raises DictionaryError for two dictionaries at one site, or a site under which another one's dictionary stands.
    """

    def __init__(self, dictionaries: Mapping[Site, Dictionary] | Iterable[Dictionary] = ()) -> None:
        if isinstance(dictionaries, Mapping):
            for site, dictionary in dictionaries.items():
                check_key(site, dictionary)
            dictionaries = dictionaries.values()
        by_site: dict[Site, Dictionary] = {}
        for dictionary in dictionaries:
            other = by_site.setdefault(dictionary.writes, dictionary)
            if other is not dictionary:
                raise DictionaryError(
                    f"dictionaries {other.name} and {dictionary.name} both write {dictionary.writes}; give one per site"
                )
        self._by_site = {site: by_site[site] for site in sorted(by_site)}

    def __getitem__(self, site: Site) -> Dictionary:
        return self._by_site[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._by_site)

    def __len__(self) -> int:
        return len(self._by_site)

    def __or__(self, other: Mapping[Site, Dictionary]) -> Dictionaries:
        """These dictionaries, and the other ones in place of those at the same sites."""
        return Dictionaries({**self, **other})

    def __repr__(self) -> str:
        return "\n  ".join([f"Dictionaries({len(self)})", *map(repr, self.values())])

    def writers(self, site: Site) -> list[Dictionary]:
        """Every dictionary that writes the site; several where cross-layer transcoders overlap."""
        return [dictionary for dictionary in self.values() if site in dictionary.sites]

    @property
    def written(self) -> list[Site]:
        """Every site that one of them writes, in forward order."""
        return sorted({site for dictionary in self.values() for site in dictionary.sites})

    @property
    def reads(self) -> list[Site]:
        """Every site that one of them reads, in forward order."""
        return sorted({dictionary.reads for dictionary in self.values()})

    def encode(self, values: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """Feature activations [..., d_sae] of each dictionary from the activations where they read."""
        return {site: dictionary.encode(values[dictionary.reads]) for site, dictionary in self.items()}

    def reconstruct(
        self, site: Site, values: Mapping[Site, Tensor], acts: Mapping[Site, Tensor] | None = None
    ) -> Tensor:
        """x_hat [..., d] at a site: the sum over the dictionaries that write there.

        Args:
            site: Where x_hat stands.
            values: Activations at the sites that are read.
            acts: What `encode` gave for these, if it is at hand.

        Raises DictionaryError if no dictionary writes the site.
        """
        parts = []
        for dictionary in self.writers(site):
            x, columns = values[dictionary.reads], dictionary.columns(site)
            features = dictionary.encode(x) if acts is None else acts[dictionary.writes]
            if len(dictionary.sites) == 1:
                parts.append(dictionary.decode(features, x))
            else:
                W_dec = dictionary.weights.W_dec[:, columns].to(features.dtype)
                parts.append(features @ W_dec + dictionary.affine(x)[..., columns])
        if not parts:
            raise DictionaryError(f"no dictionary writes {site}; nothing is reconstructed there")
        return sum(parts[1:], parts[0])

    def error(self, site: Site, values: Mapping[Site, Tensor], acts: Mapping[Site, Tensor] | None = None) -> Tensor:
        """x - x_hat [..., d] at a site; all of x where no dictionary writes. Arguments as of `reconstruct`."""
        return values[site] - self.reconstruct(site, values, acts) if self.writers(site) else values[site]


def check_key(site: Site, dictionary: Dictionary) -> None:
    """Raise DictionaryError unless the site, under which a mapping has the dictionary, is the first that it writes."""
    if site != dictionary.writes:
        raise DictionaryError(f"dictionary {dictionary.name} writes {dictionary.writes}, but is given as {site}")
