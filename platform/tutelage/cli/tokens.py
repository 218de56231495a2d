"""`tutelage tokens`: who may ask a server. A secret is shown once, when it is made, and kept nowhere."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.arguments import AsJson

keys = typer.Typer(
    help="Tokens that a server accepts: adding, listing, removing. Servers notice within a request.",
    epilog="Example: tutelage tokens add ward-3 --scope predict --file tokens",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="Whose token it is; logs name it.", show_default=False)]
File = Annotated[Path, typer.Option("--file", "-f", help="The file that `serving.tokens` names.")]


@keys.command("add")
def tokens_add(
    name: Name,
    file: File,
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="predict or admin; may be repeated. Default: predict."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token, show it this once, and write its hash into the file.

    Example: tutelage tokens add ward-3 --scope predict --file tokens
    """
    from tutelage.cli.telling import Teller
    from tutelage.cluster import tokens
    from tutelage.errors import SettingsError

    teller = Teller(as_json)
    there = tokens.read(file) if file.exists() else ()
    if any(token.name == name for token in there):
        raise SettingsError(
            f"{file} has a token called {name} already; remove it first, or take another name"
        )
    secret, token = tokens.made(name, scope or ["predict"])
    tokens.write(file, (*there, token))
    print(f"{name} may {' and '.join(token.scopes)}; its token is shown only now:", file=sys.stderr)
    if not as_json:
        # Alone on stdout, so that a pipe can take it.
        print(secret)
    teller.result({"name": name, "scopes": list(token.scopes), "token": secret, "file": str(file)})


@keys.command("list")
def tokens_list(file: File, as_json: AsJson = False) -> None:
    """Show whose tokens are accepted, for what, and since when.

    Example: tutelage tokens list --file tokens
    """
    from rich.table import Table

    from tutelage.cli.telling import Teller
    from tutelage.cluster import tokens

    teller = Teller(as_json)
    there = tokens.read(file)
    table = Table("name", "scopes", "created", box=None, pad_edge=False)
    for token in there:
        table.add_row(token.name, " ".join(token.scopes), token.created)
    teller.show(table)
    teller.result(
        {
            "tokens": [
                {"name": token.name, "scopes": list(token.scopes), "created": token.created}
                for token in there
            ]
        }
    )


@keys.command("remove")
def tokens_remove(name: Name, file: File, as_json: AsJson = False) -> None:
    """Remove a token: from the next request on it is refused.

    Example: tutelage tokens remove ward-3 --file tokens
    """
    from tutelage.cli.telling import Teller
    from tutelage.cluster import tokens
    from tutelage.errors import SettingsError

    teller = Teller(as_json)
    there = tokens.read(file)
    kept = [token for token in there if token.name != name]
    if len(kept) == len(there):
        known = ", ".join(token.name for token in there)
        raise SettingsError(f"{file} has no token called {name}; there are {known or 'none'}")
    tokens.write(file, kept)
    teller.say(f"{name} is refused from now on")
    teller.result({"removed": name, "file": str(file)})
