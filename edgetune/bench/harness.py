"""Tasks of lm-evaluation-harness, by its own library: a target of ours as one of its models.

What a task asks, how answers are filtered and scored is the harness's; what the target says is what the rest of
EdgeTune measures. Runs in the target's own process. Source: https://github.com/EleutherAI/lm-evaluation-harness.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgetune.bench import readers
from edgetune.errors import DataError, MissingExtraError
from edgetune.progress import Progress
from edgetune.runtime.probabilities import log_sum_exp

BOOTSTRAPS = 1000
NORMAL_95 = 1.959963984540054
"""Standard errors on each side of a 95 % interval."""


def require_harness() -> None:
    """Raises MissingExtraError if lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError(
            "lm-eval is not installed; its tasks need it", cure="install it: pip install 'edgetune[lm-eval]'"
        )


def measure_task(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Score the target of a request on a task: {"metric", "value", "interval", "rows", "lm_eval": all that it says}.

    "task": its name; "tasks_from": a folder of task files, whose data may lie there, or None for the harness's own;
    "limit": rows at most; "shots"; "is_chat": whether prompts go through the chat template. Raises DataError if there
    is no such task or its data cannot be had.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    task, folder = request["task_name"], request["tasks_from"]
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if task not in manager.all_tasks:
        where = f" in {folder}" if folder else ""
        raise DataError(f"lm-eval has no task {task!r}{where}", cure="its names: lm-eval ls tasks")
    model = make_model(readers.load(request), progress)
    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[task],
            num_fewshot=request["shots"],
            limit=request["limit"],
            bootstrap_iters=BOOTSTRAPS,
            apply_chat_template=request["is_chat"],
            log_samples=False,
            task_manager=manager,
        )
    except (OSError, ValueError, KeyError) as error:  # data sets and task files raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"lm-eval's task {task!r} cannot be run: {reason}", cure="look at its file and data") from None
    return summarise(task, found)


def summarise(task: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A score out of what the harness says: the first metric of the task, with a 95 % interval of its standard error.

    Raises DataError if it says no number.
    """
    values = found["results"][task]
    numbers = {key: value for key, value in values.items() if isinstance(value, int | float) and "," in key}
    name = next((key for key in numbers if "_stderr," not in key), None)
    if name is None:
        raise DataError(f"lm-eval's task {task!r} gave no number")
    metric, _, filtered = name.partition(",")
    error = numbers.get(f"{metric}_stderr,{filtered}")
    value = float(numbers[name])
    half = NORMAL_95 * float(error) if error is not None and np.isfinite(error) else None
    samples = found.get("n-samples", {}).get(task, {})
    return {
        "metric": metric,
        "value": value,
        "interval": None if half is None else [value - half, value + half],
        "rows": samples.get("effective"),
        "lm_eval": {
            "task": task,
            "results": numbers,
            "version": found.get("versions", {}).get(task),
            "library": importlib.metadata.version("lm_eval"),
            "shots": found.get("n-shot", {}).get(task),
        },
    }


def make_model(reader: readers.Reader, progress: Progress) -> Any:
    """A reader as one of the harness's models."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class Target(TemplateLM):
        """Answers the harness's three kinds of requests, one at a time."""

        tokenizer_name = "edgetune"
        eot_token_id = reader.prefix_id

        def chat_template(self, chat_template: bool | str = False) -> str:  # noqa: ARG002  only names a cache
            return "the target's own"

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return reader.render(chat_history, add_generation_prompt=add_generation_prompt)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:  # noqa: ARG002
            return reader.encode(string)

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            found = []
            for _text, context, continuation in requests:
                progress({})
                found.append(log_likelihood(reader, context, continuation))
            return found

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
            sums = []
            for request in requests:
                windows = get_rolling_token_windows(
                    token_list=reader.encode(request.args[0]),
                    prefix_token=reader.prefix_id,
                    max_seq_len=reader.context_length,
                    context_len=1,
                )
                pairs = [make_disjoint_window(window) for window in windows]
                sums.append(sum(log_likelihood(reader, *pair)[0] for pair in pairs))
                progress({})
            return sums

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
            answers = []
            for request in requests:
                context, given = request.args
                answers.append(answer(reader, context, normalize_gen_kwargs(given)))
                progress({})
            return answers

    return Target()


def log_likelihood(reader: readers.Reader, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """Log-probability of a continuation, nats, and whether greedy decoding would write it. Cut on the left to fit."""
    ids = [*context, *continuation][-(reader.context_length) :]
    start = max(1, len(ids) - len(continuation))
    logits = reader.logits(ids, start).astype(np.float64)
    targets = np.asarray(ids[start:])
    chosen = logits[np.arange(len(targets)), targets]
    return float((chosen - log_sum_exp(logits)).sum()), bool((logits.argmax(-1) == targets).all())


def answer(reader: readers.Reader, context: str, settings: Mapping[str, Any]) -> str:
    """The greedy answer to a prompt, cut before the first stop text. Raises DataError for a task that samples."""
    if settings.get("do_sample") or settings.get("temperature"):
        raise DataError("lm-eval's task samples its answers", cure="only greedy answers are measured")
    stops, new = [text for text in settings["until"] if text], int(settings["max_gen_toks"])
    ids = reader.encode(context)[-max(1, reader.context_length - new) :] or [reader.prefix_id]
    room = min(new, reader.context_length - len(ids))
    text = reader.answer(ids, max_new_tokens=room, is_done=lambda text: any(stop in text for stop in stops))
    for stop in stops:
        text = text.split(stop)[0]
    return text
