"""A population on Ray Tune: who trains where and when, and who copies whom. Needs the extra `ray`.

Ray's PopulationBasedTraining waits for all members after each generation, ranks them by their eval loss and gives the
worst quarter the checkpoints of the best. What passes through Ray are names: the checkpoints themselves lie in the
population's folder (member.py), which all machines see, and so does all that is needed to go on after a kill; Ray's
own record of the experiment is thrown away. A worker process holds the base as long as it lives, whichever members it
trains; of those that wait while the last member of a generation trains, Ray keeps at most one and starts others anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from edgetune import errors
from edgetune.errors import EdgeTuneError, RunError, Stopped
from edgetune.train.stop import StopRequest
from edgetune.tune.member import Begin, Job, Outcome, train_generation
from edgetune.tune.mutation import QUARTILE, perturbed
from edgetune.tune.share import member_share
from edgetune.tune.trial import Workbench

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
"""Of Ray: nothing is sent anywhere, nothing printed, no signal caught, no folder changed to, no log written; workers
have the priority of any other process.
"""
STORE_BYTES = 100 * 1024**2
"""Of Ray's object store, through which only names pass."""
MOST_DEATHS = 2
"""Of worker processes under one member."""
MOST_CONNECT_S = 20
"""Seconds in which a cluster's first machine has to answer."""
AUTHENTICATION = "RAY_AUTH_MODE"
"""Set by Ray itself."""
MOST_PATH = 40
"""Characters of Ray's own folder: the names of its sockets have 60 more, and a socket's path may have 107."""


class Member(tune.Trainable):
    """A worker process as Ray Tune sees it: trains whichever member it is asked to, always on the same loaded base."""

    def setup(self, config: Mapping[str, Any], job: Job, threads: int) -> None:
        """Once in a process; `threads`: of a training on the CPU."""
        if job.cwd.is_dir():
            os.chdir(job.cwd)
        if not torch.cuda.is_available():
            torch.set_num_threads(threads)
        self._job = job
        self._bench: Workbench | None = None
        self.reset_config(config)

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        """Another member from here on; which one, and whether it goes on, its checkpoint says."""
        self._next = _begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One generation."""
        begin, job = self._next, self._job
        try:
            if self._bench is None:
                self._bench = Workbench(job.recipe, job.folder)
            made = train_generation(self._bench, job, begin)
        except EdgeTuneError as error:
            failure = {"kind": type(error).__name__, "message": error.message, "cure": error.cure}
            return {"eval_loss": math.inf, "generation": begin.generation, "failure": failure, "done": True}
        self._next = dataclasses.replace(begin, generation=made.generation + 1, parent=made.member)
        return {
            "eval_loss": math.inf if made.eval_loss is None else made.eval_loss,
            "generation": made.generation,
            "member": made.member,
            "done": made.generation == job.course.generations,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The name of the checkpoint that lies in the population's folder already."""
        name = {"member": self._next.parent, "generation": self._next.generation - 1}
        Path(checkpoint_dir, "name.json").write_text(json.dumps(name), encoding="utf-8")

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Go on from the checkpoint of that name, another member's where this one copies."""
        name = json.loads(Path(checkpoint_dir, "name.json").read_text(encoding="utf-8"))
        member = int(self.trial_name.removeprefix("member-"))
        self._next = dataclasses.replace(
            self._next, member=member, generation=name["generation"] + 1, parent=name["member"]
        )


class Exploits(PopulationBasedTraining):
    """Ray's population-based training, in step, its draws a function of tune.seed and the generation; values stay in
    their ranges.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(
            time_attr="training_iteration",
            metric="eval_loss",
            mode="min",
            perturbation_interval=1,
            quantile_fraction=QUARTILE,
            custom_explore_fn=self._explored,
            log_config=False,
            synch=True,
        )
        self._space, self._seed = job.space, job.recipe.tune.seed
        self._draw = random.Random()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """As Ray has it; the last member of a generation decides for all."""
        name = f"{self._seed} {result['generation']}"
        self._draw = random.Random(name)
        random.seed(name)  # Ray draws who is copied from Python's own generator
        return str(super().on_trial_result(tune_controller, trial, result))

    def _explored(self, config: dict[str, Any]) -> dict[str, Any]:
        begin = _begin(config)
        return {"begin": _text(dataclasses.replace(begin, values=perturbed(begin.values, self._space, self._draw)))}


class Watch(tune.Callback):
    """What Ray Tune reports: outcomes to the caller; failures and signals end it."""

    def __init__(self, job: Job, request: StopRequest, tell: Callable[[Outcome], None]) -> None:
        self._job, self._request, self._tell = job, request, tell
        self._failure: Exception | None = None

    def on_trial_result(self, *, result: Mapping[str, Any], **_: Any) -> None:
        """A member has made a generation, or failed."""
        if failure := result.get("failure"):
            kind = getattr(errors, failure["kind"], RunError)
            self._failure = kind(failure["message"], cure=failure["cure"])
        elif outcome := self._job.place.outcome(result["generation"], result["member"]):
            self._tell(outcome)

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        """A member's process has died once too often."""
        text = str(trial.get_error() or "no reason known").strip().splitlines()[-1]
        self._failure = RunError(f"{trial}: its process failed {MOST_DEATHS + 1} times: {text}")

    def on_step_end(self, **_: Any) -> None:
        """Between two events: the only place from which an exception comes out as it is."""
        if self._failure is not None:
            raise self._failure
        if self._request.signal_number is not None:
            raise Stopped(
                f"stopped; everything is saved in {self._job.folder}",
                signal_number=self._request.signal_number,
                cure="the same command goes on from there",
            )


def train_on_ray(
    job: Job, begins: Sequence[Begin], *, workers: int | None, request: StopRequest, tell: Callable[[Outcome], None]
) -> None:
    """All generations from those that the members begin with to the last one; `tell` is given each outcome.

    `workers` train at the same time. Without tune.ray_address Ray runs on this machine and ends with this call. Raises
    what members raise, Stopped after a signal, RunError if no cluster answers or a worker's process dies too often.
    """
    is_local = job.recipe.tune.ray_address is None
    with _ray(job.recipe.tune.ray_address, workers, len(begins)) as resources, tempfile.TemporaryDirectory() as own:
        names = Path(own) if is_local else job.place.path / "ray"
        threads = len(os.sched_getaffinity(0)) // (workers or 1) if is_local else int(resources["CPU"])
        member = tune.with_parameters(Member, job=job, threads=max(1, threads))
        tuner = tune.Tuner(
            tune.with_resources(member, resources),
            param_space={"begin": tune.grid_search([_text(begin) for begin in begins])},
            tune_config=tune.TuneConfig(
                scheduler=Exploits(job),
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(names),
                callbacks=[Watch(job, request, tell)],
                failure_config=tune.FailureConfig(max_failures=MOST_DEATHS),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            shutil.rmtree(names, ignore_errors=True)


@contextlib.contextmanager
def _ray(address: str | None, workers: int | None, members: int) -> Iterator[dict[str, float]]:
    """Ray, running; what a member takes of it. Raises RunError if there is none at the address."""
    settings = {**QUIET, "TUNE_MAX_PENDING_TRIALS_PG": str(members)}  # else many begin before all are known
    before = {name: os.environ.get(name) for name in (*settings, AUTHENTICATION)}
    os.environ.update(settings)
    folder = None
    common = {"logging_level": logging.CRITICAL, "log_to_driver": False, "configure_logging": True}
    try:
        if address:
            _knock(address)
            _take_token()
            ray.init(address=address, **common)
        else:
            folder = _short_folder()
            ray.init(
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                _temp_dir=str(folder),
                **common,
            )
        yield member_share([machine["Resources"] for machine in ray.nodes() if machine["Alive"]], workers)
    except ConnectionError as error:
        raise _no_cluster(address, error) from None
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _knock(address: str) -> None:
    """Raises RunError where nobody listens at host:port, for which Ray itself waits many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=MOST_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _take_token() -> None:
    """Show the cluster the token that this machine has, if any: at an address Ray does so only when told to."""
    with contextlib.suppress(ImportError):  # a release that does it elsewhere
        from ray._private.authentication import authentication_token_setup

        logging.getLogger("ray").setLevel(logging.CRITICAL)  # as ray.init does, before it
        authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _no_cluster(address: str | None, error: BaseException) -> RunError:
    return RunError(
        f"tune.ray_address: no Ray cluster answers at {address}: {errors.first_line(error)}",
        cure="start one with `ray start --head`, or leave it out",
    )


def _short_folder() -> Path:
    """A folder of Ray's own, its name short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    if len(str(folder)) > MOST_PATH and os.access("/tmp", os.W_OK):
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    return folder


def _text(begin: Begin) -> str:
    """As Ray keeps it: a text, of which it makes nothing."""
    return json.dumps(dataclasses.asdict(begin))


def _begin(config: Mapping[str, Any]) -> Begin:
    return Begin(**json.loads(config["begin"]))


def _trial_name(trial: Any) -> str:
    return f"member-{_begin(trial.config).member}"
