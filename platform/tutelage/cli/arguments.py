"""What several commands take, told once: the campaign's file, its overrides, and how to answer.

It decides names and help of arguments, and not what any command makes of them.
"""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(help="YAML file of the campaign.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that override the file's.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Result as JSON on stdout, all words on stderr.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check it all, say what would be done, and stop.")]
Tracking = Annotated[
    str | None, typer.Option(help="MLflow of models:/ addresses. Default: MLFLOW_TRACKING_URI.")
]
