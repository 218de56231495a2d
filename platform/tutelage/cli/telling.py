"""Where words and results go: with --json the result alone is on stdout, all words are on stderr."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType


class Teller:
    """Speaks for one command."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True)

    def say(self, text: str = "") -> None:
        """Print one line; brackets in it are just brackets."""
        self.console.print(text, markup=False)

    def show(self, table: RenderableType) -> None:
        """Print a table."""
        self.console.print(table, soft_wrap=False)

    def result(self, values: Mapping[str, Any]) -> None:
        """Print what a program would want to know, if one is asking."""
        if self.as_json:
            print(json.dumps(values, indent=1))


def set_up_logging(verbose: bool) -> None:
    """Let the library's log reach stderr; without `verbose` only what went wrong unexpectedly."""
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(name)s %(levelname)s: %(message)s")
    logging.getLogger("tutelage").setLevel(logging.DEBUG if verbose else logging.ERROR)
