"""`edgetune train`."""

import click


@click.command("train")
def command() -> None:
    """train."""
