"""The command line. It translates between a person and the rooms and decides nothing itself.

`app` declares the commands, the other files are what they do: `campaigns` (run, its steps,
report, catalog), `comparing` (table), `recounting` (ledger, rollback), `reviewing`,
`predicting`, `serving`. Files in jobs/ start here too. Nothing heavy is imported before a
command needs it, so that --help is immediate.
"""

import logging
import sys
from collections.abc import Sequence

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code; mistakes of the user are told without a traceback.

    So are files that cannot be had, and disks that are full, wherever that is noticed.
    """
    from tutelage.cli.app import app
    from tutelage.errors import TutelageError

    try:
        app(sys.argv[1:] if arguments is None else list(arguments), prog_name="tutelage")
    except TutelageError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        logging.getLogger(__name__).debug("where it was noticed", exc_info=True)
        print(f"{error.filename}: {error.strerror}; what was finished is kept", file=sys.stderr)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print("stopped; finished work is kept, and the same command goes on from there", file=sys.stderr)
        raise


def job(command: str) -> None:
    """Run a command as a submitted job: on the Ray that it was submitted to, if there is one."""
    import os

    config, rest = sys.argv[1:2], sys.argv[2:]
    here, lasting = [], []
    if "RAY_ADDRESS" in os.environ:
        here, lasting = ["cluster.backend=ray", "cluster.address=auto"], _lasting(config, rest)
    main([command, *config, *here, *rest, *lasting])


def _lasting(config: Sequence[str], rest: Sequence[str]) -> list[str]:
    """Lay a relative workspace into the home folder: a job runs in a copy of the checkout, soon deleted."""
    import re
    from pathlib import Path

    from tutelage.errors import TutelageError
    from tutelage.rounds.settings import RunSettings
    from tutelage.settings import load

    overrides = [word for word in rest if re.match(r"[a-z][a-z0-9_.]*=", word)]
    try:
        workspace = load(Path(*config), RunSettings, overrides).workspace
    except TutelageError:  # the command says what is wrong
        return []
    relative = "://" not in workspace and not Path(workspace).expanduser().is_absolute()
    return [f"workspace={Path.home() / workspace}"] if relative else []
