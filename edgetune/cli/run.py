"""`edgetune run`."""

import click


@click.command("run")
def command() -> None:
    """run."""
