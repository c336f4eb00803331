"""What features do over many texts: where each is most active, how often and how strongly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitgraph.lazy_names import lazy_names

if TYPE_CHECKING:
    from circuitgraph.corpus.activity import Activity as Activity
    from circuitgraph.corpus.activity import features_of as features_of
    from circuitgraph.corpus.activity import read_texts as read_texts
    from circuitgraph.corpus.activity import run_corpus as run_corpus
    from circuitgraph.corpus.files import write_corpus_examples as write_corpus_examples

__all__ = ["Activity", "features_of", "read_texts", "run_corpus", "write_corpus_examples"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Activity": "activity",
        "features_of": "activity",
        "read_texts": "activity",
        "run_corpus": "activity",
        "write_corpus_examples": "files",
    },
)
