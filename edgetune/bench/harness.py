"""Tasks of lm-evaluation-harness, by its own library: a target of ours as one of its models.

What a task asks, how answers are filtered and scored is the harness's; what the target says is what the rest of
EdgeTune measures. Runs in the target's own process. Source: https://github.com/EleutherAI/lm-evaluation-harness.

Bundles are not asked by its onnxruntime backends, so that they and torch models are asked alike: those put no start
token before a text, leave a token of each full window out, and take no chat template. Where none of that plays a part
the scores are the same (benchmarks/agree.py).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgetune.bench import readers
from edgetune.errors import DataError, MissingExtraError, first_line
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
    """Score the target of a request on a task, a tag or a group: what `summarise` gives, and "answers": rows as
    `answer_rows` gives them.

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
            log_samples=True,
            task_manager=manager,
        )
    except (OSError, ValueError, KeyError) as error:  # data sets and task files raise many kinds
        raise DataError(
            f"lm-eval's task {task!r} cannot be run: {first_line(error)}", cure="look at its file and data"
        ) from None
    return {**summarise(task, found), "answers": answer_rows(task, found)}


def summarise(task: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A score out of what the harness says: {"metric", "value", "interval", "rows", "lm_eval": all that it says}.

    Of a task, or a group that says how its tasks are put together, the first metric; of a tag, or a group that does
    not, the plain mean over its tasks of the first one that all have. The interval has 95 %, of the standard error.
    Raises DataError if there is no number.
    """
    parts = _parts(found)
    metric, filtered, numbers = _chosen(task, found)
    error = numbers.get(f"{metric}_stderr,{filtered}")
    value = float(numbers[f"{metric},{filtered}"])
    half = NORMAL_95 * float(error) if error is not None and np.isfinite(error) else None
    counts = [found.get("n-samples", {}).get(name, {}).get("effective") for name in parts]
    return {
        "metric": metric,
        "value": value,
        "interval": None if half is None else [value - half, value + half],
        "rows": None if None in counts else sum(counts),
        "lm_eval": {
            "task": task,
            "results": numbers,
            "tasks": parts if list(parts) != [task] else {},
            "versions": {name: found.get("versions", {}).get(name) for name in parts},
            "library": importlib.metadata.version("lm_eval"),
            "shots": {name: found.get("n-shot", {}).get(name) for name in parts},
        },
    }


def answer_rows(task: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was asked, what is right, what was answered and how it scored, row by row: as evaluate keeps its answers.

    Of choices the likeliest one is the answer; of a text that is only weighed there is none.
    """
    metric, filtered, _ = _chosen(task, found)
    rows = [
        _answer_row(name, sample, metric)
        for name in _parts(found)
        for sample in found["samples"][name]
        if sample["filter"] == filtered
    ]
    is_right_or_wrong = all(row["score"] in (0.0, 1.0) for row in rows)
    return [{**row, "correct": row["score"] == 1.0 if is_right_or_wrong else None} for row in rows]


def _parts(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The numbers of each task that was run, those of groups aside."""
    groups = found.get("group_subtasks", {})
    return {name: _numbers(values) for name, values in found["results"].items() if name not in groups}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in values.items() if isinstance(value, int | float) and "," in key}


def _chosen(task: str, found: Mapping[str, Any]) -> tuple[str, str, dict[str, float]]:
    """(metric, filter, numbers by "metric,filter") of a task, tag or group. Raises DataError without any number."""
    numbers = _numbers(found["results"].get(task, {})) or _mean(list(_parts(found).values()))
    name = next((key for key in numbers if "_stderr," not in key), None)
    if name is None:
        raise DataError(f"lm-eval's task {task!r} gave no number")
    metric, _, filtered = name.partition(",")
    return metric, filtered, numbers


def _mean(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over tasks of the numbers that all of them have, and its standard error."""
    shared = [key for key in parts[0] if all(key in part for part in parts)] if parts else []
    return {
        key: float(np.sqrt(sum(part[key] ** 2 for part in parts)) if "_stderr," in key else sum(p[key] for p in parts))
        / len(parts)
        for key in shared
    }


def _answer_row(task: str, sample: Mapping[str, Any], metric: str) -> dict[str, Any]:
    asked = [tuple(map(str, arguments[:2])) for arguments in sample["arguments"]]
    said, right = sample["filtered_resps"], sample["target"]
    answer = said[0] if isinstance(said[0], str) else None
    if answer is None and len(said) > 1:
        is_one_question = len({context for context, _ in asked}) == 1
        choices = [continuation if is_one_question else context for context, continuation in asked]
        answer = choices[max(range(len(said)), key=lambda number: said[number][0])]
        right = choices[right] if isinstance(right, int) and right < len(choices) else right
    score = sample.get(metric)
    return {
        "prompt": asked[0][0],
        "reference": str(right),
        "answer": answer,
        "score": float(score) if isinstance(score, int | float | np.number) else None,
        "place": f"{task}:{sample['doc_id']}",
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

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            """As the harness's transformers backend: with what the tokenizer adds, but no second start token."""
            begins = bool(reader.prefix_text) and string.startswith(reader.prefix_text)
            return reader.encode(
                string, add_special_tokens=not begins if add_special_tokens is None else add_special_tokens
            )

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
                    token_list=self.tok_encode(request.args[0]),
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
                answers.append(answer(reader, self.tok_encode(context), normalize_gen_kwargs(given)))
                progress({})
            return answers

    return Target()


def log_likelihood(reader: readers.Reader, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """Log-probability of a continuation, nats, and whether greedy decoding would write it.

    Cut on the left to fit: its last token is predicted and not read, so that one more than the context holds has room.
    """
    ids = [*context, *continuation][-(reader.context_length + 1) :]
    start = max(1, len(ids) - len(continuation))
    logits = reader.logits(ids, start).astype(np.float64)
    targets = np.asarray(ids[start:])
    chosen = logits[np.arange(len(targets)), targets]
    return float((chosen - log_sum_exp(logits)).sum()), bool((logits.argmax(-1) == targets).all())


def answer(reader: readers.Reader, context: Sequence[int], settings: Mapping[str, Any]) -> str:
    """The greedy answer to a prompt, cut before the first stop text. Raises DataError for a task that samples."""
    if settings.get("do_sample") or settings.get("temperature"):
        raise DataError("lm-eval's task samples its answers", cure="only greedy answers are measured")
    stops, new = [text for text in settings["until"] if text], int(settings["max_gen_toks"])
    ids = list(context)[-max(1, reader.context_length - new) :] or [reader.prefix_id]
    room = min(new, reader.context_length - len(ids))
    text = reader.answer(ids, max_new_tokens=room, is_done=lambda text: any(stop in text for stop in stops))
    for stop in stops:
        text = text.split(stop)[0]
    return text
