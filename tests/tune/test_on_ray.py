"""Populations on Ray Tune itself, in two worker processes, by the command that a user gives."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch
from patience import LONG_S
from safetensors.torch import load_file

from edgetune.recipe import load_recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

SPACE = """
"train.learning_rate" = { low = 1e-4, high = 0.05, log = true }
"lora.dropout" = { low = 0.0, high = 0.2 }
"""


@pytest.fixture(scope="module")
def recipe(recipe_text, tmp_path_factory):
    """Of four members, three generations."""
    text = recipe_text[: recipe_text.index("[tune.space]")] + "[tune.space]" + SPACE
    text = text.replace("max_steps = 2\neval_steps = 1", "max_steps = 6\neval_steps = 2")
    recipe = tmp_path_factory.mktemp("population") / "tiny.toml"
    recipe.write_text(text)
    return recipe


def command_of(recipe, folder):
    """`edgetune tune` on two workers."""
    options = ["--population", "4", "--workers", "2", "--json", "-o", folder]
    return [*map(str, [sys.executable, "-m", "edgetune", "tune", recipe, *options])]


@pytest.fixture
def command(recipe, tmp_path):
    return command_of(recipe, tmp_path / "p")


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A population that is trained in one go: its folder, what it found and told, and the processes it left."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGETUNE_TEST", str(folder))
        document, told = done(command_of(recipe, folder / "p"))
    return folder / "p", document, told, own_processes(str(folder))


def done(command):
    finished = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout), finished.stderr


def weights(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


def courses(document):
    """What does not hang on the clock."""
    return [{**one, "wall_s": 0} for one in document["outcomes"]]


def own_processes(marker):
    """Processes that have the folder of a test in their command or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if marker in " ".join(process.cmdline()) or process.environ().get("EDGETUNE_TEST") == marker:
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def test_two_workers_train_a_population_whose_best_is_a_run_and_leave_no_process(whole, tmp_path):
    folder, document, told, left = whole
    assert len(document["outcomes"]) == 12
    assert document["copies"] == 2
    for generation in (2, 3):
        before = {one["member"]: one["eval_loss"] for one in of_generation(document, generation - 1)}
        (copy,) = [one for one in of_generation(document, generation) if one["parent"] != one["member"]]
        assert copy["member"] == max(before, key=before.__getitem__)
        assert copy["parent"] == min(before, key=before.__getitem__)
    assert "copied from member" in told
    assert "ray" not in told.lower()
    assert left == []
    torch.set_num_threads(1)
    train(load_recipe(folder / "best.toml"), RunDir(tmp_path / "again"))
    kept, again = (weights(run) for run in (folder / "best", tmp_path / "again"))
    assert all(torch.equal(kept[name], again[name]) for name in again)


def of_generation(document, generation):
    return [one for one in document["outcomes"] if one["generation"] == generation]


def test_a_population_that_is_stopped_and_later_killed_goes_on_to_the_same_end(whole, command, tmp_path):
    for number, generation in ((signal.SIGINT, 2), (signal.SIGKILL, 3)):
        code, told = interrupted(command, tmp_path, number, generation)
        assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
        assert number == signal.SIGKILL or "the same command goes on from there" in told
        assert (generation == 2) == ("goes on after generation" not in told)
    found, told = done(command)
    assert "goes on after generation 2" in told
    assert courses(found) == courses(whole[1])


def interrupted(command, folder, number, generation):
    """Exit code and standard error of a command that gets a signal when a member has made a generation; Ctrl-C reaches
    every process of the terminal. None of them is left.
    """
    environment = {**os.environ, "EDGETUNE_TEST": str(folder)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        while not list(folder.glob(f"p/population/generation-{generation:04d}/member-*.json")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, told = process.communicate(timeout=LONG_S)
    _, left = psutil.wait_procs(own_processes(str(folder)), timeout=LONG_S)
    assert left == []
    return process.returncode, told


def test_an_error_in_a_worker_is_the_user_s_in_one_line(command, tmp_path):
    Path(tmp_path, "p", "cache").mkdir(parents=True)
    finished = subprocess.run(
        [*command, "--set", "lora.target_modules=['q_proj', 'o_proj']", "--set", "lora.init_from=nowhere"],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    assert "nowhere" in finished.stderr.splitlines()[-1]


@pytest.fixture
def cluster(monkeypatch):
    """The address of a Ray cluster of this machine's cores that asks for its token; gone afterwards."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as folder:  # the paths of sockets are short
        ports = dict(zip(("port", "dashboard-agent-listen-port"), free_ports(2), strict=True))
        options = {**ports, "num-cpus": len(os.sched_getaffinity(0)), "object-store-memory": 10**8, "temp-dir": folder}
        flags = [f"--{name}={value}" for name, value in options.items()]
        head = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false"]
        environment = {**os.environ, "EDGETUNE_TEST": folder}
        with subprocess.Popen(
            [*head, "--disable-usage-stats", *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        ) as process:
            try:
                while not listens(ports["port"]):
                    assert process.poll() is None
                    time.sleep(0.1)
                yield f"127.0.0.1:{ports['port']}", folder
            finally:
                process.terminate()
                process.wait(timeout=LONG_S)
        _, left = psutil.wait_procs(own_processes(folder), timeout=LONG_S)
        assert left == []


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def listens(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_on_a_cluster_by_address_a_population_is_the_same_and_the_cluster_is_left_as_it_was(
    whole, recipe, cluster, tmp_path, monkeypatch
):
    address, marker = cluster
    monkeypatch.setenv("EDGETUNE_TEST", str(tmp_path))
    command = [*command_of(recipe, tmp_path / "p"), "--set", f"tune.ray_address={address}"]
    found, told = done(command)
    assert courses(found) == courses(whole[1])
    assert "ray" not in told.lower()
    assert {path.name for path in (tmp_path / "p").iterdir()} == {path.name for path in whole[0].iterdir()}
    assert own_processes(str(tmp_path)) == []
    _, left = psutil.wait_procs([one for one in own_processes(marker) if is_member(one)], timeout=LONG_S)
    assert left == []
    assert listens(int(address.rpartition(":")[2]))


def is_member(process):
    """Whether a process of a cluster trains, or has trained, members: Ray names it after its class."""
    try:
        return "Member" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_an_address_where_no_cluster_is_is_an_error_in_one_line(command):
    finished = subprocess.run(
        [*command, "--set", "tune.ray_address=127.0.0.1:1"], capture_output=True, text=True, timeout=LONG_S, check=False
    )
    assert finished.returncode == 2, finished.stderr
    assert "no Ray cluster answers at 127.0.0.1:1" in finished.stderr.splitlines()[-1]
