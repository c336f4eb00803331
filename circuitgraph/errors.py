"""Every exception that circuitgraph raises on purpose.

    CircuitGraphError
    ├── PromptError        prompts, answers and their tokens
    ├── ModelError         loading or running a model
    ├── DictionaryError    loading a dictionary, or one that does not fit the model
    ├── MetricError        an unknown metric, or one that returned the wrong shape
    ├── GraphError         an invalid node, edge, graph or graph file
    └── RenderError        a picture that cannot be drawn

A message says what is wrong with its value, what was expected, and what to do; it fits one line of a
terminal log.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CircuitGraphError(Exception):
    """Base of all errors below; the command line prints it as one line and exits with 1."""


class PromptError(CircuitGraphError):
    """A prompt pair that cannot be used."""


class ModelError(CircuitGraphError):
    """A model that cannot be loaded, run or differentiated."""


class DictionaryError(CircuitGraphError):
    """A dictionary that cannot be loaded or does not fit the model."""


class MetricError(CircuitGraphError):
    """A metric that does not exist or does not give one number per example."""


class GraphError(CircuitGraphError):
    """A node, edge, graph or graph file that breaks the schema."""


class RenderError(CircuitGraphError):
    """A picture that cannot be drawn or written."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest known word, else the empty string."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
