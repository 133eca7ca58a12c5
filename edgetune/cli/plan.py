"""`edgetune plan`."""

import click


@click.command("plan")
def command() -> None:
    """plan."""
