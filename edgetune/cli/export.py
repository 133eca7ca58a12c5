"""`edgetune export`."""

import click


@click.command("export")
def command() -> None:
    """export."""
