"""`tutelage weights`: its commands and their help. What they do is in `weights`."""

from typing import Annotated

import typer

from tutelage.cli.arguments import AsJson

shelf = typer.Typer(
    help="Checkpoints of generalists: which there are, bringing them here, checking them.",
    epilog="Example: tutelage weights pull sam_vit_b",
    no_args_is_help=True,
)


@shelf.command("list")
def weights_list(as_json: AsJson = False) -> None:
    """Show every published checkpoint: whether it is here, its size, licence and digest.

    Example: tutelage weights list
    """
    from tutelage.cli.telling import Teller
    from tutelage.cli.weights import listed

    raise typer.Exit(listed(Teller(as_json)))


@shelf.command("pull")
def weights_pull(
    names: Annotated[list[str], typer.Argument(help="Generalists, as in the list.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Download checkpoints and check them; those that are here and whole stay.

    Example: tutelage weights pull sam_vit_b mobilesam
    """
    from tutelage.cli.telling import Teller
    from tutelage.cli.weights import pull

    raise typer.Exit(pull(names, Teller(as_json)))


@shelf.command("verify")
def weights_verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Generalists; default: all.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read checkpoints and compare their digests with the published or recorded ones.

    Example: tutelage weights verify
    """
    from tutelage.cli.telling import Teller
    from tutelage.cli.weights import verify

    raise typer.Exit(verify(names or [], Teller(as_json)))
