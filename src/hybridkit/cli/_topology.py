"""`hybridkit topology`: what consumers need of the broker, and what it has."""

import typer

app = typer.Typer()
