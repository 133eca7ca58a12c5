"""`edgetune chat`."""

import click


@click.command("chat")
def command() -> None:
    """chat."""
