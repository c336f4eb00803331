"""What Neuronpedia's importer asks of an attribution graph, as a JSON schema: every field that it names, with its type."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT, NUMBER, WHOLE, ANY_LIST = ({"type": name} for name in ("string", "number", "integer", "array"))
NUMBER_OR_NULL, WHOLE_OR_NULL = {"type": ["number", "null"]}, {"type": ["integer", "null"]}


def _object(required: str = "", **properties: Schema) -> Schema:
    return {"type": "object", "required": required.split(), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _tuples(size: int) -> Schema:
    return _list({"type": "array", "minItems": size, "maxItems": size})


_QK = _object(
    "pair_wise_contributors top_q_marginal_contributors top_k_marginal_contributors",
    pair_wise_contributors=_tuples(3),
    top_q_marginal_contributors=_tuples(2),
    top_k_marginal_contributors=_tuples(2),
)
_FIELDS = {"node_id": TEXT, "layer": TEXT, "ctx_idx": WHOLE, "feature_type": TEXT, "jsNodeId": TEXT, "clerp": TEXT}
_NODE = _object(
    "node_id feature layer ctx_idx feature_type jsNodeId clerp",
    **_FIELDS,
    feature=WHOLE,
    influence=NUMBER_OR_NULL,
    activation=NUMBER_OR_NULL,
    qk_tracing_results=_QK,
)
_QK_ONLY = _object(
    "node_id feature_type layer ctx_idx jsNodeId clerp", **_FIELDS, feature=WHOLE_OR_NULL, activation=NUMBER_OR_NULL
)
_GENERATOR = _object(name=TEXT, version=TEXT, url=TEXT, email=TEXT)
_METADATA = _object(
    "slug scan prompt_tokens prompt",
    slug=TEXT,
    scan=TEXT,
    prompt_tokens=_list(TEXT),
    prompt=TEXT,
    node_threshold=NUMBER,
    feature_details=_object(feature_json_base_url=TEXT, neuronpedia_source_set=TEXT, neuronpedia_lorsa_source_set=TEXT),
    info=_object(
        description=TEXT,
        creator_name=TEXT,
        creator_url=TEXT,
        source_urls=ANY_LIST,
        generator=_GENERATOR,
        create_time_ms=NUMBER,
    ),
    generation_settings=_object(
        max_n_logits=WHOLE, desired_logit_prob=NUMBER, batch_size=WHOLE, max_feature_nodes=WHOLE
    ),
    pruning_settings=_object(node_threshold=NUMBER, edge_threshold=NUMBER),
)
_Q_PARAMS = _object(pinnedIds=_list(TEXT), supernodes=_list(ANY_LIST), linkType=TEXT, clickedId=TEXT, sg_pos=TEXT)
_LINK = _object("source target weight", source=TEXT, target=TEXT, weight=NUMBER)
SCHEMA = _object(
    "metadata qParams nodes links",
    metadata=_METADATA,
    qParams=_Q_PARAMS,
    nodes=_list(_NODE),
    links=_list(_LINK),
    qk_only_nodes={"type": "object", "additionalProperties": _QK_ONLY},
)
