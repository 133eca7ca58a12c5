"""One measurement of benchmarks.decode in a process of its own: prints one JSON line."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

THREADS = len(os.sched_getaffinity(0))


def main() -> None:
    """Arguments: kind, path, prompt tokens, new tokens."""
    kind, path, prompt_tokens, new_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if kind == "bandwidth":
        from edgetune.model.machine import read_bandwidth_bytes_per_s

        print(json.dumps(read_bandwidth_bytes_per_s(THREADS)))
        return
    prompt = np.random.default_rng(0).integers(10, 250, size=prompt_tokens).tolist()
    measure = {"edgetune": _edgetune, "llama.cpp": _llama_cpp}[kind]
    result = measure(path, prompt, new_tokens)
    result["peak_bytes"] = _peak_bytes()
    print(json.dumps(result))


def _edgetune(path: str, prompt: list[int], new_tokens: int) -> dict:
    """Through plain onnxruntime-genai, with nothing but the bundle's own settings.

    `path`: a bundle, or an .onnx_adapter file in one, which is then active.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as og

    adapter = Path(path) if path.endswith(".onnx_adapter") else None
    model = og.Model(str(adapter.parent if adapter else path))
    adapters = og.Adapters(model)
    if adapter:
        adapters.load(str(adapter), adapter.stem)

    def run() -> tuple[float, float]:
        params = og.GeneratorParams(model)
        length = len(prompt) + new_tokens + 1
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = og.Generator(model, params)
        if adapter:
            generator.set_active_adapter(adapters, adapter.stem)
        start = time.perf_counter()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(new_tokens):
            generator.generate_next_token()
        return middle - start, time.perf_counter() - middle

    return _median_of(run, prompt, new_tokens)


def _llama_cpp(path: str, prompt: list[int], new_tokens: int) -> dict:
    """Through llama.cpp's own C calls, so that no Python wrapper costs it time; greedy, as above."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_QUIET(llama_cpp), None)
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = len(prompt) + new_tokens + 8
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = THREADS
    context = llama_cpp.llama_init_from_model(model, params)
    sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_greedy())

    def decode(tokens: list[int]) -> int:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) != 0:
            raise RuntimeError("llama_decode failed")
        return llama_cpp.llama_sampler_sample(sampler, context, -1)

    def run() -> tuple[float, float]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        start = time.perf_counter()
        token = decode(prompt)
        middle = time.perf_counter()
        for _ in range(new_tokens):
            token = decode([token])
        return middle - start, time.perf_counter() - middle

    return _median_of(run, prompt, new_tokens)


def _QUIET(llama_cpp):  # noqa: N802
    callback = llama_cpp.llama_log_callback(lambda *_: None)
    _KEPT.append(callback)
    return callback


_KEPT: list = []


def _median_of(run, prompt: list[int], new_tokens: int, *, repeats: int = 5) -> dict:
    """One warm-up, then the medians of the repeats inside this process."""
    run()
    timings = [run() for _ in range(repeats)]
    prefill = statistics.median(first for first, _ in timings)
    decode = statistics.median(second for _, second in timings)
    return {"prefill_tokens_per_s": len(prompt) / prefill, "decode_tokens_per_s": new_tokens / decode}


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
