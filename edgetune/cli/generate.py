"""`edgetune generate`."""

import click


@click.command("generate")
def command() -> None:
    """generate."""
