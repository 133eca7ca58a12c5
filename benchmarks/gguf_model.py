"""A Hugging Face Llama folder -> GGUF: llama.cpp runs the weights that a bundle holds. For benchmarks and tests."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

LAYER_TENSORS = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
OTHER_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(folder: Path, out: Path, *, kind: str = "F32", architecture: str = "llama") -> Path:
    """Write a Llama folder (config.json, *.safetensors, tokenizer.json) as a GGUF file.

    `kind`: of its matrices, one that the library can write: F32, F16, BF16, Q8_0, Q4_0 ...; vectors are float32.
    """
    config = json.loads((folder / "config.json").read_text())
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    writer = gguf.GGUFWriter(str(out), architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float((config.get("rope_parameters") or config).get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder, config["vocab_size"])
    for name, tensor in _tensors(folder):
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = _interleave(tensor, heads if "q_proj" in name else kv_heads)
        stored = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
        values = gguf.quantize(np.ascontiguousarray(tensor, dtype=np.float32), stored)
        writer.add_tensor(_gguf_name(name), values, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def quantize(source: Path, out: Path, kind: str) -> Path:
    """Quantise a GGUF file by llama.cpp itself; kind is Q4_0, Q4_K_M or Q8_0."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    if code != 0:
        raise RuntimeError(f"llama.cpp could not quantise {source} to {kind}")
    return out


def _tensors(folder: Path):
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name).float().numpy()


def _gguf_name(name: str) -> str:
    if name in OTHER_TENSORS:
        return OTHER_TENSORS[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER_TENSORS[rest]}"


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows from Hugging Face's half-split RoPE order to llama.cpp's interleaved one."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, vocab_size: int) -> None:
    """Token texts and merges of a byte-level BPE that cuts text as GPT-2 does, its special tokens and chat template."""
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text()) if path.exists() else {"model": {"vocab": {}, "merges": []}, "added_tokens": []}
    tokens = [f"<unused{i}>" for i in range(vocab_size)]
    kinds = [gguf.TokenType.UNUSED] * vocab_size
    for text, number in spec["model"]["vocab"].items():
        tokens[number], kinds[number] = text, gguf.TokenType.NORMAL
    for token in spec["added_tokens"]:
        tokens[token["id"]], kinds[token["id"]] = token["content"], gguf.TokenType.CONTROL
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in spec["model"].get("merges", [])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges or ["a b"])
    config = json.loads((folder / "config.json").read_text())
    writer.add_bos_token_id(config.get("bos_token_id") or 0)
    writer.add_eos_token_id(config.get("eos_token_id") or 0)
    writer.add_add_bos_token(False)
    if template := _chat_template(folder):
        writer.add_chat_template(template)


def _chat_template(folder: Path) -> str | None:
    """The template of a model folder, in either of the files that may hold it."""
    for name, read in (
        ("chat_template.jinja", str),
        ("tokenizer_config.json", lambda text: json.loads(text).get("chat_template")),
    ):
        if (folder / name).exists() and (found := read((folder / name).read_text(encoding="utf-8"))):
            return found
    return None
