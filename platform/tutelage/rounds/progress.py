"""Progress a person can follow: bars on a terminal, plain lines in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Advance = Callable[[int, str], None]
"""Called with how much is done so far and a note on how it goes."""

_LINE_EVERY_S = 10.0


class Reporter:
    """Tells a console what is going on."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._warned: set[str] = set()

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, soft_wrap=True, markup=False)

    def warn(self, about: str, text: str) -> None:
        """Print a warning, unless there was one about the same before."""
        if about not in self._warned:
            self._warned.add(about)
            self.say(f"warning: {text}")

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Show one piece of long work while it runs."""
        started = time.monotonic()
        if self.console.is_terminal:
            with self._bar(name, total, done) as advance:
                yield advance
        else:
            self.say(f"{name}: {done} of {total}")
            yield self._lines(name, total)
        self.say(f"  {name}: {time.monotonic() - started:.0f} s")

    @contextmanager
    def _bar(self, name: str, total: int, done: int) -> Iterator[Advance]:
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            bar = progress.add_task(name, total=total, completed=done, note="")

            def advance(done: int, note: str = "") -> None:
                progress.update(bar, completed=done, note=note)

            yield advance

    def _lines(self, name: str, total: int) -> Advance:
        told = time.monotonic()

        def advance(done: int, note: str = "") -> None:
            nonlocal told
            if time.monotonic() - told >= _LINE_EVERY_S:
                told = time.monotonic()
                self.say(f"  {name}: {done} of {total} {note}".rstrip())

        return advance
