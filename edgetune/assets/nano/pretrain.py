"""Pretrain `edgetune:nano` from scratch, on a GPU if there is one: tokenizer, batches, the loop, export.

    python -m edgetune.assets.nano.pretrain train --work build/nano --decay-at-minutes 85
    python -m edgetune.assets.nano.pretrain train --work build/nano --rows 128 --workers 14 --decay-at-minutes 3
    python -m edgetune.assets.nano.pretrain export --work build/nano
    python -m edgetune.assets.nano.pretrain train --work build/more --go-on-from edgetune/assets/nano

Every batch is a function of its step number, so a killed run goes on from its last checkpoint as if nothing had been.
The schedule is warm-up, stable, linear decay; the decay starts at a deadline or when the file `decay_now` appears in
the work folder (its text: the decay's length in minutes) and follows the clock, not the steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaForCausalLM

from edgetune.assets.nano import export
from edgetune.assets.nano.corpus import BOS, PASSES, Document, find_data, read_documents, split_held_out
from edgetune.assets.nano.tasks import Pool, make_pool, make_tasks
from edgetune.assets.nano.tokenizer import save_tokenizer, train_tokenizer
from edgetune.model.device import device as training_device
from edgetune.model.device import has_bfloat16

Optimizers = list[torch.optim.Optimizer]
RowLosses = Callable[[LlamaForCausalLM, Tensor, Tensor], Tensor]

SEED = 20
CONTEXT = 512
ROWS_PER_STEP = 16
CPU_ROWS_PER_PASS = 8
SYNTHETIC_SHARE = 0.5  # of the rows of a step
WARMUP_STEPS = 40
LOG_STEPS = 10
PROMPT_WEIGHT = 0.1  # of the loss in synthetic prompts: their random words teach little, their answers much
MUON_LR, ADAMW_LR, WEIGHT_DECAY = 5e-3, 3e-3, 0.1
CHECKPOINT_S, EVALUATE_S = 300.0, 600.0


@dataclass(frozen=True)
class Batches(Dataset):
    """The tokenised documents and the pool for tasks; `batches[step]` gives the same rows whenever it is asked."""

    tokenizer: Tokenizer
    ids: np.ndarray  # all documents, each opened by <|endoftext|>, uint16
    starts: np.ndarray  # where each document begins in ids, and the end
    passes: np.ndarray  # how often each document is read in an epoch
    pool: Pool
    rows: int = ROWS_PER_STEP
    shuffled: dict[int, np.ndarray] = field(default_factory=dict)  # the stream of the current epoch

    @property
    def synthetic_rows(self) -> int:
        """How many rows of a step, the last ones, are made of tasks."""
        return round(SYNTHETIC_SHARE * self.rows)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """The token ids of a step, int64 (rows, CONTEXT + 1), and the targets' loss weights, float32 (rows, CONTEXT).

        The synthetic rows come last. The weight is 1 for every token of natural rows and of the answers in synthetic
        ones, PROMPT_WEIGHT for the rest.
        """
        natural_tokens = (self.rows - self.synthetic_rows) * (CONTEXT + 1)
        natural = self._natural(step * natural_tokens, natural_tokens)
        tasks = make_tasks(self.pool, SEED * 10**9 + step)
        synthetic = torch.from_numpy(pack_tasks(self.tokenizer, tasks, self.synthetic_rows))
        ids = torch.cat([torch.from_numpy(natural.reshape(-1, CONTEXT + 1).astype(np.int64)), synthetic])
        weights = torch.ones(self.rows, CONTEXT)
        is_answer = export.is_answer(synthetic).float()
        weights[-self.synthetic_rows :] = PROMPT_WEIGHT + (1 - PROMPT_WEIGHT) * is_answer
        return ids, weights

    def from_step(self, step: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of this and all later steps, made ahead by worker processes."""
        return iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=itertools.count(step),
                num_workers=workers,
                prefetch_factor=4 if workers else None,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=_tokenize_alone,
            )
        )

    def _natural(self, start: int, count: int) -> np.ndarray:
        epoch, offset = divmod(start, int((np.diff(self.starts) * self.passes).sum()))
        tail = self._epoch(epoch)[offset : offset + count]
        return tail if len(tail) == count else np.concatenate([tail, self._epoch(epoch + 1)[: count - len(tail)]])

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self.shuffled:
            self.shuffled.clear()
            documents = np.repeat(np.arange(len(self.passes)), self.passes)
            order = np.random.default_rng(SEED + epoch).permutation(documents)
            self.shuffled[epoch] = np.concatenate([self.ids[self.starts[i] : self.starts[i + 1]] for i in order])
        return self.shuffled[epoch]


def _tokenize_alone(_worker: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads of the process that was forked are not there


def pack_tasks(tokenizer: Tokenizer, tasks: Iterator[str], rows: int) -> np.ndarray:
    """(rows, CONTEXT + 1) token ids of tasks one after another, the last one cut off."""
    wanted, ids = rows * (CONTEXT + 1), list[int]()
    while len(ids) < wanted:
        for encoding in tokenizer.encode_batch(list(itertools.islice(tasks, 32))):
            ids += encoding.ids
    return np.array(ids[:wanted]).reshape(rows, CONTEXT + 1)


def pack_documents(tokenizer: Tokenizer, documents: list[Document]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of all documents end to end (uint16) and where each begins."""
    encodings = tokenizer.encode_batch([BOS + d.text for d in documents])
    starts = np.cumsum([0, *(len(e.ids) for e in encodings)])
    return np.concatenate([np.array(e.ids, dtype=np.uint16) for e in encodings]), starts


def prepare(work: Path, data: Path, rows: int) -> Batches:
    """Read the texts, train the tokenizer (or load the one in the work folder), tokenise and keep the held-out part."""
    train, held_out = split_held_out(read_documents(data))
    pool = make_pool(train)
    held_out_tasks = list(itertools.islice(make_tasks(make_pool(held_out), SEED), 1500))
    if not (work / "tokenizer" / "tokenizer.json").exists():
        texts = [d.text for d in train] + list(itertools.islice(make_tasks(pool, SEED), 40_000))
        plain = [export.strip_special(t) for t in texts]
        save_tokenizer(train_tokenizer(plain, [d.text for d in held_out] + held_out_tasks), work / "tokenizer")
    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    ids, starts = pack_documents(tokenizer, train)
    np.savez(
        work / "evaluation.npz",
        natural=pack_documents(tokenizer, held_out)[0],
        natural_bytes=sum(len(export.strip_special(d.text).encode()) for d in held_out),
        synthetic=pack_tasks(tokenizer, iter(held_out_tasks), 96),
        train=ids,
    )
    return Batches(tokenizer, ids, starts, np.array([PASSES.get(d.source, 1) for d in train]), pool, rows)


def make_model() -> LlamaForCausalLM:
    """A fresh 6 M parameter Llama; the matrices that write to the residual stream start at zero."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(export.make_config())
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(parameter)
    return model


def orthogonalize(gradient: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Newton-Schulz iteration of Muon in float32: torch's own is bfloat16, 80 times slower on a CPU without it."""
    a, b, c = coefficients
    is_tall = gradient.size(0) > gradient.size(1)
    x = gradient.T if is_tall else gradient
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def make_optimizers(model: LlamaForCausalLM) -> Optimizers:
    """Muon (arXiv:2502.16982, updates scaled to AdamW's size) for the layers' matrices, AdamW for the rest."""
    if not has_bfloat16(training_device()):
        torch.optim._muon._zeropower_via_newtonschulz = orthogonalize
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in n)]
    muon = torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


def row_losses(model: LlamaForCausalLM, rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean next-token loss of each row in nats: rows (n, CONTEXT + 1), weights (n, CONTEXT) -> (n,)."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return (losses.view_as(weights) * weights).sum(1) / weights.sum(1)


class Clock:
    """Training time in seconds over all restarts, and the learning-rate factor that follows it."""

    def __init__(self, elapsed_s: float, decay_from_s: float | None, decay_s: float, warm_from: int = 0) -> None:
        self.elapsed_s, self.decay_from_s, self.decay_s = elapsed_s, decay_from_s, decay_s
        self.warm_from = warm_from  # the step at which the warm-up began

    def check(self, work: Path, decay_at_s: float) -> None:
        """Start the decay when its time has come or somebody asked for it."""
        if self.decay_from_s is not None:
            return
        asked = work / "decay_now"
        if asked.exists():
            self.decay_s = 60 * float(asked.read_text().strip() or self.decay_s / 60)
            self.decay_from_s = self.elapsed_s
        elif self.elapsed_s >= decay_at_s:
            self.decay_from_s = self.elapsed_s

    def state(self) -> dict:
        """What a checkpoint keeps of the clock."""
        return vars(self).copy()

    def factor(self, step: int) -> float:
        """1 in the stable phase, up from 0 in the warm-up, down to 0 in the decay."""
        warm = min(1.0, (step - self.warm_from + 1) / WARMUP_STEPS)
        if self.decay_from_s is None:
            return warm
        return warm * max(0.0, 1 - (self.elapsed_s - self.decay_from_s) / self.decay_s)


def train(
    work: Path,
    data: Path,
    out: Path,
    *,
    decay_at_minutes: float,
    decay_minutes: float,
    rows: int = ROWS_PER_STEP,
    workers: int = 0,
    release: Path | None = None,
) -> None:
    """Train until the decay has ended, from the last checkpoint if there is one; then export.

    rows: of CONTEXT tokens in a step. workers: processes that make batches ahead. release: a folder that `export`
    wrote. Without a checkpoint, training goes on from its weights, step and clock with a new warm-up and no optimizer
    state. decay_at_minutes counts from the very first step of the release.
    """
    work.mkdir(parents=True, exist_ok=True)
    if release and not (work / "checkpoint.pt").exists():
        start_from_release(work, release)
    device = training_device()
    batches, model = prepare(work, data, rows), make_model().to(device)
    optimizers = make_optimizers(model)
    state = load_checkpoint(work, model, optimizers)
    clock = Clock(
        state["elapsed_s"], state["decay_from_s"], state["decay_s"] or 60 * decay_minutes, state.get("warm_from", 0)
    )
    losses_of = torch.compile(row_losses)
    step, tokens = state["step"], state["tokens"]
    saved_s, evaluated_s, logged_s, logged_tokens = clock.elapsed_s, clock.elapsed_s, clock.elapsed_s, tokens
    steps = batches.from_step(step, workers)

    def save() -> None:
        save_checkpoint(work, model, optimizers, {"step": step, "tokens": tokens} | clock.state())

    while True:
        began = time.perf_counter()
        clock.check(work, 60 * decay_at_minutes)
        factor = clock.factor(step)
        if factor == 0:
            break
        losses = train_step(losses_of, model, optimizers, *next(steps), factor)
        step, tokens = step + 1, tokens + rows * CONTEXT
        if step % LOG_STEPS == 0:
            losses = losses.cpu()  # waits for the device
        clock.elapsed_s += time.perf_counter() - began
        if step % LOG_STEPS == 0:
            record = {
                "step": step,
                "tokens": tokens,
                "elapsed_s": round(clock.elapsed_s, 1),
                "factor": round(factor, 4),
                "loss_natural": round(losses[: -batches.synthetic_rows].mean().item(), 4),
                "loss_synthetic": round(losses[-batches.synthetic_rows :].mean().item(), 4),
                "tokens_per_s": round((tokens - logged_tokens) / (clock.elapsed_s - logged_s)),
            }
            append_log(work, record)
            logged_s, logged_tokens = clock.elapsed_s, tokens
        if clock.elapsed_s - saved_s > CHECKPOINT_S:
            save()
            saved_s = clock.elapsed_s
        if clock.elapsed_s - evaluated_s > EVALUATE_S:
            append_log(work, {"step": step} | export.evaluate(model, work, max_rows=64))
            evaluated_s = clock.elapsed_s
    save()
    export.export(work, out)
    append_log(work, {"step": step, "done": True})


def train_step(
    losses_of: RowLosses, model: LlamaForCausalLM, optimizers: Optimizers, ids: Tensor, weights: Tensor, factor: float
) -> Tensor:
    """One optimizer step over all rows -> the loss of each row, in nats a token, on the model's device."""
    device, losses = model.device, []
    rows_per_pass = CPU_ROWS_PER_PASS if device.type == "cpu" else len(ids)
    ids, weights = ids.to(device, non_blocking=True), weights.to(device, non_blocking=True)
    for part, part_weights in zip(ids.split(rows_per_pass), weights.split(rows_per_pass), strict=True):
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            loss = losses_of(model, part, part_weights)
        (loss.sum() / len(ids)).backward()
        losses.append(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, peak in zip(optimizers, (MUON_LR, ADAMW_LR), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.cat(losses)


def hardware() -> str:
    """What trains here, in words."""
    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name(0)}"
    return f"{os.cpu_count()} CPU cores, {_cpu_name()}, no GPU"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())


def save_checkpoint(work: Path, model: LlamaForCausalLM, optimizers: Optimizers, progress: dict) -> None:
    """Write checkpoint.pt with everything a restart needs, atomically."""
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    partial = work / "checkpoint.pt.part"
    torch.save(state | progress | {"synthetic_share": SYNTHETIC_SHARE, "hardware": hardware()}, partial)
    os.replace(partial, work / "checkpoint.pt")


def start_from_release(work: Path, release: Path) -> None:
    """Write the first checkpoint of `work` from an exported folder: its tokenizer, weights, step and time."""
    export.copy_tokenizer(release, work / "tokenizer")
    facts = json.loads((release / "training.json").read_text("utf-8"))
    model = LlamaForCausalLM.from_pretrained(release, dtype=torch.float32)
    clock = Clock(facts["train_wall_s"], None, 0.0, warm_from=facts["steps"])
    progress = {"step": facts["steps"], "tokens": facts["tokens"]} | clock.state()
    save_checkpoint(work, model, make_optimizers(model), progress)


def load_checkpoint(work: Path, model: LlamaForCausalLM, optimizers: Optimizers) -> dict:
    """Load the last checkpoint into model and optimizers; a state of zeros if there is none."""
    if not (work / "checkpoint.pt").exists():
        return {"step": 0, "tokens": 0, "elapsed_s": 0.0, "decay_from_s": None, "decay_s": None}
    state = torch.load(work / "checkpoint.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state


def append_log(work: Path, record: dict) -> None:
    """One JSON line to log.jsonl."""
    with (work / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m edgetune.assets.nano.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (("train", "train (or go on training), then export"), ("export", "export the last checkpoint")):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("--work", type=Path, required=True, help="folder for checkpoints, log and token caches")
        sub.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the model (default: here)")
        if verb == "train":
            sub.add_argument("--data", type=Path, help="data folder (default: $EDGETUNE_DATA or ../shared/data)")
            sub.add_argument("--rows", type=int, default=ROWS_PER_STEP, help="rows of 512 tokens a step (default: 16)")
            sub.add_argument("--workers", type=int, default=0, help="processes that make batches ahead (default: 0)")
            sub.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
            sub.add_argument("--decay-at-minutes", type=float, default=85.0, help="start of the decay")
            sub.add_argument("--decay-minutes", type=float, default=20.0, help="length of the decay")
            sub.add_argument("--go-on-from", type=Path, metavar="FOLDER", help="start from exported weights")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if options.verb == "export":
        export.export(options.work, options.out)
        return
    torch.set_num_threads(options.threads)
    train(
        options.work,
        options.data or find_data(),
        options.out,
        decay_at_minutes=options.decay_at_minutes,
        decay_minutes=options.decay_minutes,
        rows=options.rows,
        workers=options.workers,
        release=options.go_on_from,
    )


if __name__ == "__main__":
    main()
