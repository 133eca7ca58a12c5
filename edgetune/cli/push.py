"""`edgetune push`: an adapter or a bundle to the Hugging Face Hub. The work is in bundle/push.py."""

from __future__ import annotations

from pathlib import Path

import click

from edgetune.cli import console
from edgetune.cli.options import json_option


@click.command("push", epilog="Example: edgetune push runs/quickstart/bundle me/lamp-int4 --private")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="NAME/REPO")
@click.option("--private", is_flag=True, help="Make a repository that only its owners see.")
@click.option("--message", help="Of the commit.")
@click.option("--force", is_flag=True, help="Upload a bundle that is not verified.")
@json_option
def command(folder: Path, repo_id: str, private: bool, message: str | None, force: bool, as_json: bool) -> None:
    """Upload an adapter's or a bundle's folder, with its model card, to the Hugging Face Hub.

    The account is that of HF_TOKEN or `hf auth login`. A bundle whose verification did not pass is refused.
    """
    import dataclasses

    from edgetune.bundle.push import push

    done = push(folder, repo_id, private=private, message=message, force=force)
    if as_json:
        console.say_json(dataclasses.asdict(done))
        return
    console.say(f"{done.kind} uploaded to {done.url}, commit {done.commit[:12]}")
