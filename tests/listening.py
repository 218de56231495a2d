"""A reporter that remembers what a run says, for tests that look at it."""

from rich.console import Console

from tutelage.rounds.progress import Reporter


class Listener(Reporter):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    @property
    def warned(self) -> list[str]:
        return [text for text in self.said if text.startswith("warning")]
