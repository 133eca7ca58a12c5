"""`edgetune merge`."""

import click


@click.command("merge")
def command() -> None:
    """merge."""
