"""optuna-dashboard on a study's own file."""

from __future__ import annotations

import json
import subprocess
import sys

import optuna
import pytest

from edgetune.tune.search import search
from edgetune.tune.study import StudyDir

ASK = """
import io, json, sys
from optuna_dashboard import wsgi
import optuna
app = wsgi(optuna.storages.RDBStorage(sys.argv[1]))
for path in json.loads(sys.argv[2]):
    status = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "x", "SERVER_PORT": "1",
               "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr}
    body = b"".join(app(environ, lambda said, headers, *_: status.append(said)))
    print(status[0], body.decode()[:200000].replace("\\n", " "))
"""


@pytest.mark.usefixtures("paper_bench")
def test_the_dashboard_shows_a_study_and_its_trials(make_recipe, tmp_path):
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    search(make_recipe("tune.trials=3", "tune.pruner=none"), StudyDir(tmp_path))
    url = f"sqlite:///{tmp_path / 'study.db'}"
    number = optuna.load_study(study_name="tiny", storage=url)._study_id
    paths = ["/api/studies", f"/api/studies/{number}"]
    done = subprocess.run(
        [sys.executable, "-c", ASK, url, json.dumps(paths)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = [line.partition(" OK ") for line in done.stdout.splitlines()]
    assert [status for status, _, _ in answers] == ["200", "200"]
    studies, study = (json.loads(body) for _, _, body in answers)
    assert [found["study_name"] for found in studies["study_summaries"]] == ["tiny"]
    assert [trial["state"] for trial in study["trials"]] == ["Complete"] * 3
    assert {param["name"] for param in study["trials"][0]["params"]} == {"train.learning_rate", "lora.r"}
