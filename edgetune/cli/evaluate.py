"""`edgetune evaluate`."""

import click


@click.command("evaluate")
def command() -> None:
    """evaluate."""
