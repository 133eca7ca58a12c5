"""bundle/push.py and `edgetune push`, against a hub of one's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_hub import READER, WRITER, FakeHub, fake_hub

from edgetune.cli import main
from edgetune.files import read_json, write_json
from edgetune.runtime.bundle import MANIFEST

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own, of httpx


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    from huggingface_hub import constants

    with fake_hub() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield made


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy whose verification passed."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    _mark(folder, passed=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n", encoding="utf-8")
    (folder / ".DS_Store").write_bytes(b"of a file manager")
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    write_json(folder / "adapter_config.json", config)
    (folder / "adapter_model.safetensors").write_bytes(b"\x02" * 30_000)
    return folder


def _mark(folder: Path, *, passed: bool | None) -> None:
    manifest = read_json(folder / MANIFEST)
    write_json(folder / MANIFEST, manifest | {"verified": {} if passed is None else {"passed": passed}})


def push(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["push", *map(str, arguments)])


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_bundle_arrives_whole_with_its_card(hub: FakeHub, bundle: Path) -> None:
    done = push(bundle, "me/lamp", "--private", "--json")
    assert done.exit_code == 0, done.stderr
    assert hub.repos["me/lamp"] == contents(bundle)
    assert "README.md" in hub.repos["me/lamp"]
    assert len(hub.large) >= 1
    assert hub.private == {"me/lamp": True}
    assert hub.commits == ["Bundle by EdgeTune"]
    told = json.loads(done.stdout)
    assert (told["kind"], told["repo_id"], told["url"]) == ("bundle", "me/lamp", f"{hub.url}/me/lamp")


def test_an_adapter_goes_into_a_repository_that_is_there(hub: FakeHub, adapter: Path) -> None:
    for message in ("first", "second"):
        done = push(adapter, "me/adapter", "--message", message)
        assert done.exit_code == 0, done.stderr
        (adapter / "README.md").write_text("# changed", encoding="utf-8")
    assert done.stdout.startswith(f"adapter uploaded to {hub.url}/me/adapter, commit ")
    assert hub.repos["me/adapter"] == contents(adapter)
    assert hub.commits == ["first", "second"]
    assert hub.private == {"me/adapter": False}


@pytest.mark.parametrize(("passed", "told"), [(False, "failed its verification"), (None, "is not verified")])
def test_a_bundle_that_did_not_pass_goes_by_force_only(
    hub: FakeHub, bundle: Path, passed: bool | None, told: str
) -> None:
    _mark(bundle, passed=passed)
    refused = push(bundle, "me/lamp")
    assert refused.exit_code == 5
    assert f"{told}, so nothing was uploaded" in refused.stderr
    assert hub.repos == {}
    assert push(bundle, "me/lamp", "--force").exit_code == 0
    assert MANIFEST in hub.repos["me/lamp"]


def test_a_bundle_with_a_changed_byte_never_goes(hub: FakeHub, bundle: Path) -> None:
    file = max(bundle.iterdir(), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    refused = push(bundle, "me/lamp", "--force")
    assert refused.exit_code == 2
    assert file.name in refused.stderr
    assert hub.repos == {}


def test_what_is_neither_is_refused_with_what_to_give(hub: FakeHub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    refused = push(run, "me/lamp")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert f"neither an adapter nor a bundle; give {run / 'adapter'}" in refused.stderr
    (run / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}', encoding="utf-8")
    assert "no adapter_model.safetensors" in push(run / "adapter", "me/lamp").stderr
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("hf_unknown", "the hub does not know this token; set HF_TOKEN to one that may write"),
        (READER, "this token may not write there; take one that may write"),
        (None, "no account to upload with; set HF_TOKEN, or log in with `hf auth login`"),
    ],
)
def test_an_account_that_may_not_write_is_one_line(
    hub: FakeHub, bundle: Path, token: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    refused = push(bundle, "me/lamp")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert told in refused.stderr
    assert hub.repos == {}


def test_a_name_that_is_none_and_a_hub_that_refuses_are_one_line(hub: FakeHub, bundle: Path) -> None:
    named = push(bundle, "no name/of a repository/at all")
    assert (named.exit_code, named.stderr.count("\n")) == (2, 1)
    hub.broken = True
    refused = push(bundle, "me/lamp")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "a card with broken metadata" in refused.stderr


def test_a_hub_that_is_not_there_is_one_line(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused = push(bundle, "me/lamp")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "the hub was not reached" in refused.stderr
    assert "check the network and HF_ENDPOINT" in refused.stderr
