"""The root command, with groups that are imported on use, and hybridkit's errors in one line."""

from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Final

from hybridkit._cli import COMMANDS, GROUPS
from hybridkit.errors import HybridkitError, MissingExtraError

try:
    import typer
    from typer.core import TyperCommand, TyperGroup
    from typer.main import get_command, get_group
except ImportError:
    raise MissingExtraError("the command hybridkit", extra="cli") from None

INTERRUPTED: Final = 130


class _Root(TyperGroup):
    """The group that turns errors into exit codes, and imports a command when it is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all groups and commands, in alphabetic order."""
        return sorted([*super().list_commands(ctx), *COMMANDS])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a group, or the name and help of a command, so that `hybridkit --help` imports none."""
        if cmd_name in COMMANDS:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the arguments name, imported, and the arguments that are left."""
        name, command, left = super().resolve_command(ctx, args)
        if name in COMMANDS:
            module, _, attribute = COMMANDS[name][0].partition(":")
            command = get_command(getattr(import_module(module), attribute))
        return name, command, left

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            typer.Exit: the command has failed with an error of hybridkit (1), or was interrupted by Ctrl-C (130).
        """
        try:
            return super().invoke(ctx)
        except HybridkitError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(INTERRUPTED) from error


class _Lazy(TyperGroup):
    """A group that imports its module when its commands are needed, so that `hybridkit --help` imports none."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the module's commands."""
        return self._group().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of that name, or None."""
        return self._group().get_command(ctx, cmd_name)

    def _group(self) -> TyperGroup:
        module, _ = GROUPS[str(self.name)]
        return get_group(import_module(module).app)


def _print_version(value: bool) -> None:  # noqa: FBT001 - typer's signature
    if value:
        typer.echo(f"hybridkit {version('hybridkit')}")
        raise typer.Exit


app: Final = typer.Typer(
    cls=_Root,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Look after what a hybridkit application has at its broker and in its databases.

    Exit codes: 0 all is well, 1 something differs or failed, 2 wrong use, 130 Ctrl-C.
    """
    del show_version


for _name, (_, _help) in GROUPS.items():
    app.add_typer(typer.Typer(cls=_Lazy, help=_help, no_args_is_help=True, rich_markup_mode=None), name=_name)
