"""Reads the files of karpathy/llama2.c into Hugging Face folders: real published weights for the tests.

Layout (legacy v0): 7 int32 (dim, hidden, layers, heads, kv heads, vocabulary, context), then float32 tensors in a fixed
order; a positive vocabulary means that embedding and head are tied. Source: llama2.c, export.py (legacy_export).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file


def write_folder(weights: Path, tokenizer: Path, out: Path) -> Path:
    """A Hugging Face Llama folder (float32 safetensors, tokenizer.json) from a .bin and a SentencePiece .model file."""
    out.mkdir(parents=True, exist_ok=True)
    config, tensors = read_weights(weights)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    special = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    (out / "generation_config.json").write_text(json.dumps(special))
    write_tokenizer(tokenizer, out, context=config["max_position_embeddings"])
    return out


def read_weights(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """config.json's values and the tensors under their Hugging Face names."""
    data = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, context = np.frombuffer(data[:28], np.int32).tolist()
    assert vocabulary > 0, "embedding and head are not tied"
    values = torch.frombuffer(bytearray(data[28:]), dtype=torch.float32)
    position = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal position
        count = int(np.prod(shape))
        position += count
        return values[position - count : position].view(shape).clone()

    head_dim = dim // heads
    kv_dim = head_dim * kv_heads
    names = {
        "input_layernorm": (dim,),
        "self_attn.q_proj": (dim, dim),
        "self_attn.k_proj": (kv_dim, dim),
        "self_attn.v_proj": (kv_dim, dim),
        "self_attn.o_proj": (dim, dim),
        "post_attention_layernorm": (dim,),
        "mlp.gate_proj": (hidden, dim),
        "mlp.down_proj": (dim, hidden),
        "mlp.up_proj": (hidden, dim),
    }
    tensors = {"model.embed_tokens.weight": take(vocabulary, dim)}
    for name, shape in names.items():
        for layer, weight in enumerate(take(layers, *shape)):
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                weight = halves_from_pairs(weight, head_dim)
            tensors[f"model.layers.{layer}.{name}.weight"] = weight.contiguous()
    tensors["model.norm.weight"] = take(dim)
    assert position + context * head_dim == len(values), "the rotary tables at the end are skipped, nothing else"
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }
    return config, tensors


def halves_from_pairs(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of wq or wk, whose rotary pairs lie side by side, in Hugging Face's order: first halves, then second."""
    rows, columns = weight.shape
    return weight.view(rows // head_dim, head_dim // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def write_tokenizer(path: Path, out: Path, *, context: int) -> None:
    """tokenizer.json and tokenizer_config.json of a SentencePiece BPE model."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    names = [pieces.id_to_piece(index) for index in range(pieces.get_piece_size())]
    vocabulary = {name: index for index, name in enumerate(names)}
    model = models.BPE(
        vocabulary, merges_of(names, pieces), unk_token="<unk>", fuse_unk=True, byte_fallback="<0x00>" in vocabulary
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "model_max_length": context,
                "clean_up_tokenization_spaces": False,
            }
        )
    )


def merges_of(names: list[str], pieces: object) -> list[tuple[str, str]]:
    """Merges of a SentencePiece BPE: the better the score of what they make, the earlier."""
    known = {name: pieces.get_score(index) for index, name in enumerate(names)}  # type: ignore[attr-defined]
    merges = [
        (score, known[name[:cut]], (name[:cut], name[cut:]))
        for name, score in known.items()
        if len(name) > 1 and not name.startswith("<")
        for cut in range(1, len(name))
        if name[:cut] in known and name[cut:] in known
    ]
    return [pair for _, _, pair in sorted(merges, key=lambda merge: (-merge[0], -merge[1]))]
