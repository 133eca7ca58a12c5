"""The families of encoders that EdgeTune trains and exports, each as a configuration small enough for a test."""

from __future__ import annotations

WIDTHS = {"vocab_size": 400, "hidden_size": 36, "intermediate_size": 72, "num_hidden_layers": 2}
ENCODER_CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "bert": ("BertConfig", {**WIDTHS, "num_attention_heads": 2, "max_position_embeddings": 48}),
    "deberta-v2": (
        "DebertaV2Config",
        {
            **WIDTHS,
            "num_attention_heads": 2,
            "max_position_embeddings": 48,
            "relative_attention": True,
            "position_buckets": 128,  # 256 rows of relative positions: an embedding on the grid
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": 400, "dim": 36, "hidden_dim": 72, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 48},
    ),
    "modernbert": (
        "ModernBertConfig",
        {
            **WIDTHS,
            "num_attention_heads": 2,
            "max_position_embeddings": 48,
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "cls_token_id": 0,
            "sep_token_id": 2,
        },
    ),
    "roberta": (
        "RobertaConfig",
        {**WIDTHS, "hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 50},
    ),
    "xlm-roberta": ("XLMRobertaConfig", {**WIDTHS, "num_attention_heads": 2, "max_position_embeddings": 300}),
}
"""model_type -> class of its configuration and a tiny one. 36 is no multiple of any block."""
SPECS: dict[str, dict[str, object]] = {
    "deberta-v2": {"pooling": "cls"},
    "roberta": {"pooling": "cls", "head": "linear"},
    "xlm-roberta": {"pooling": "pooler", "head": "linear", "multi_label": True},
}
"""What differs from a cosine head over the mean."""
