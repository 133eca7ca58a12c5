"""`ranks.py COUNT OUT STOP edgetune's words`, in a warm process: processes of one training, each of one thread.

In place of torchrun, which would import torch once for itself and once for each. Process 1 gets SIGTERM in step STOP;
each notes the rows that it collates in OUT/seen-RANK.jsonl. Prints exit codes to OUT/codes.json.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import torch

from edgetune.cli import main
from edgetune.train import fit, task

count, out, stop = int(sys.argv.pop(1)), Path(sys.argv.pop(1)), int(sys.argv.pop(1))
torch.set_num_threads(1)
collate, make_step, steps = task.Generation.collate, fit.make_step, []


def collate_and_tell(self, rows):
    with (out / f"seen-{os.environ['RANK']}.jsonl").open("a") as file:
        file.write(json.dumps([len(steps), rows]) + "\n")
    return collate(self, rows)


def make_step_or_stop(*args):
    steps.append(1)
    if len(steps) == stop and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return make_step(*args)


task.Generation.collate, fit.make_step = collate_and_tell, make_step_or_stop
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
children = []
for rank in range(count):
    child = os.fork()
    if child == 0:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        main(sys.argv[1:])
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
(out / "codes.json").write_text(json.dumps(codes))
