"""What the priors room can be told."""

from collections.abc import Iterator
from pathlib import Path

from tutelage.errors import SettingsError
from tutelage.settings import Settings


class PriorsSettings(Settings):
    """Where the reviewed priors are."""

    shelf: str | None = None
    """A YAML file of reviewed priors; without one every structure may have any volume."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about a shelf that cannot be read."""
        if self.shelf is None:
            return
        from tutelage.priors.shelf import read

        try:
            read(Path(self.shelf))
        except SettingsError as error:
            yield "shelf", str(error)
