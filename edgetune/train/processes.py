"""The processes of one training: who is the main one, and how they act, fail and end as one.

In the flow: `together` stands around a verb or a training. Inside it every word between processes (a result of the main
one, a sum, an error) goes over one channel, so that a process that fails is heard wherever the others wait. The channel
is gloo's, apart from that of the gradients, and knows no time limit: the others wait while the main one exports.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from edgetune.errors import EdgeTuneError, HardwareError, OtherProcessError, RunError
from edgetune.launch import launched

T = TypeVar("T")
WORDS_TIMEOUT = timedelta(days=365)
TELLING_S = 20.0
"""How long a process that fails waits for the others to hear it. They may be in an exchange of tensors, which only its
own end, or the launcher's, breaks off."""
BUCKET_ELEMENTS = 16 * 1024**2
"""Of the tensors that are summed in one exchange."""


class LostTouchError(RunError):
    """Another process of the run has gone without a word: killed, or its machine is out of reach."""


_words: Any = None
"""The channel's process group; None: this process is alone."""


def count() -> int:
    """How many processes train together."""
    return 1 if _words is None else dist.get_world_size()


def rank() -> int:
    """The number of this one."""
    return 0 if _words is None else dist.get_rank()


def is_main() -> bool:
    """Whether this process writes the run folder and speaks for all."""
    return rank() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the processes that a launcher started, and leave with them. An error of one ends all: in the others it is an
    OtherProcessError with its exit code. Alone, or inside another such block, nothing happens.
    """
    if _words is not None or launched().count == 1:
        yield
        return
    _refuse_sharding()
    _start()
    try:
        yield
        wait()
    except Exception as error:
        if lost := _lost_touch(error):
            raise lost from None
        if not isinstance(error, LostTouchError | OtherProcessError):
            _tell(error)
        raise
    finally:
        _leave()


def _refuse_sharding() -> None:
    """Raises HardwareError where Accelerate's configuration divides the model itself, which would be passed over."""
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true", "yes"):
            raise HardwareError(
                f"the launcher asks for {name}: EdgeTune holds the whole base, in 4 bits, on each GPU",
                cure="launch with `accelerate launch --multi_gpu`, or with torchrun",
            )


def wait() -> None:
    """Return when all processes are here."""
    gathered(None)


def main_does(work: Callable[[], T]) -> T:
    """Let the main process do something while the others wait; what it returned, in all of them."""
    if count() == 1:
        return work()
    result = [work() if is_main() else None]
    wait()
    with _in_touch():
        dist.broadcast_object_list(result, src=0, group=_words)
    return result[0]  # type: ignore[return-value]


def in_turn(work: Callable[[], T]) -> T:
    """Do something first in the main process, then in the first of every other machine, then in the rest.

    What the first ones leave on disk, shared or not, the later ones find.
    """
    if count() == 1:
        return work()
    results = []
    mine = 0 if is_main() else 1 if launched().local_rank == 0 else 2
    for turn in range(3):
        if turn == mine:
            results.append(work())
        wait()
    return results[0]


def gathered(value: T) -> list[T]:
    """A small value of every process, in order, in all of them. Raises OtherProcessError if one has failed instead."""
    if count() == 1:
        return [value]
    return _exchange(value, None)


def same_everywhere(value: Any, *, what: str, cure: str) -> None:
    """Raises RunError in every process if the value is not the same in all."""
    values = gathered((value, platform.node()))
    for number, (other, machine) in enumerate(values):
        if other != values[0][0]:
            raise RunError(f"process {number} of {count()} ({machine}): {what} than in process 0", cure=cure)


def sum_tensors(tensors: Sequence[Tensor]) -> None:
    """Sum tensors over all processes, in place: many small ones in one exchange."""
    if count() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        with _in_touch():
            dist.all_reduce(flat)
        for tensor, summed in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def copy_from_main(tensors: Sequence[Tensor]) -> None:
    """Give tensors the values that they have in the main process."""
    if count() == 1:
        return
    for tensor in tensors:
        with _in_touch():
            dist.broadcast(tensor, src=0)


def draw_apart(seed: int, step: int) -> None:
    """Give all but the main process random numbers of their own for a step, which follow from seed, step and process.

    The main one's go on as if it were alone, and nothing has to be saved for the others.
    """
    if not is_main():
        torch.manual_seed(int(np.random.SeedSequence([seed, step, rank()]).generate_state(1)[0]))


def _start() -> None:
    """Join the process group, through Accelerate, and open the channel."""
    global _words
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())
    _words = dist.new_group(backend="gloo", timeout=WORDS_TIMEOUT)


def _leave() -> None:
    global _words
    _words = None


def _exchange(value: Any, error: dict[str, Any] | None) -> list[Any]:
    """The values of all processes; the first error, if there is one, is raised instead by those who have none."""
    found: list[Any] = [None] * dist.get_world_size()
    with _in_touch():
        dist.all_gather_object(found, (value, error), group=_words)
    failed = next((other for _, other in found if other is not None), None)
    if failed is not None and error is None:
        raise OtherProcessError(failed["message"], cure=failed["cure"], exit_code=failed["exit_code"])
    return [value for value, _ in found]


def _tell(error: Exception) -> None:
    """Let the others know that this process fails, wherever they wait next."""
    told = _described(error)
    teller = threading.Thread(target=_try_exchange, args=(told,), daemon=True)
    teller.start()
    teller.join(TELLING_S)
    if isinstance(error, EdgeTuneError) and not teller.is_alive():
        error.is_told = True


def _try_exchange(told: dict[str, Any]) -> None:
    with contextlib.suppress(EdgeTuneError):  # they are gone already
        _exchange(None, told)


def _described(error: Exception) -> dict[str, Any]:
    """An error as the other processes get it."""
    who = "" if is_main() else f"process {rank()} of {count()} ({platform.node()}): "
    if isinstance(error, EdgeTuneError):
        return {"message": who + error.message, "cure": error.cure, "exit_code": error.exit_code}
    first_line = (str(error).splitlines() or [""])[0]
    return {"message": f"{who}{type(error).__name__}: {first_line}", "cure": "", "exit_code": 1}


@contextlib.contextmanager
def _in_touch() -> Iterator[None]:
    """An exchange; that another process has died meanwhile is a RunError."""
    try:
        yield
    except RuntimeError as error:
        if lost := _lost_touch(error):
            raise lost from None
        raise


def _lost_touch(error: Exception) -> LostTouchError | None:
    """What torch's error means if it tells that another process has gone; None if it tells something else."""
    is_lost = isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))
    if not is_lost:
        return None
    return LostTouchError(
        f"process {rank()} of {count()} has lost touch with another one",
        cure="look at what that one said, or at the system's log; the same command goes on from the last checkpoint",
    )


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type in groups of at most BUCKET_ELEMENTS, or one that is larger."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        filled = sum(item.numel() for item in bucket)
        if bucket and (filled + tensor.numel() > BUCKET_ELEMENTS or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
