"""How the demo is told: for people, in colour where the terminal has it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.rule import Rule

from kms.guest.errors import Problem

_BROAD: Final = 120  # columns where there is no terminal to ask

DEVELOPMENT: Final = (
    "[bold]DEVELOPMENT MODE[/bold]\n"
    "The chip is SIMULATED and its root is trusted only because KMS_DEVELOPMENT_ROOTS names it.\n"
    "Nothing here is protected; everything else is the real server, policy and guest."
)


class Show:
    """Tells the story on a console; for `programs` on standard error, since standard output is theirs."""

    def __init__(self, *, programs: bool) -> None:
        self._console = Console(stderr=programs, highlight=False, soft_wrap=True)
        if not self._console.is_terminal:
            self._console.width = _BROAD

    def development(self) -> None:
        """Say loudly that nothing is protected."""
        self._console.print(Panel(DEVELOPMENT, style="red", expand=False), soft_wrap=False)

    def chapter(self, title: str) -> None:
        """Begin a part of the story."""
        self._console.print()
        self._console.print(Rule(title, align="left", style="cyan"), soft_wrap=False)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Show work while it lasts, and that it is done."""
        with self._console.status(escape(what)):
            yield
        self.done(what)

    def done(self, what: str) -> None:
        """Say what was done."""
        self._console.print(f"  [green]✓[/green] {escape(what)}")

    def fact(self, name: str, value: str) -> None:
        """Show a value."""
        self._console.print(f"    [dim]{escape(f'{name:<18}')}[/dim] {escape(value)}")

    def text(self, printed: str) -> None:
        """Show what a command printed."""
        for line in printed.splitlines():
            self._console.print(f"    [dim]│[/dim] {escape(line)}")

    def key(self, name: str, algorithm: str, epoch: int | None, fingerprint: str) -> None:
        """Show that a key arrived; never the key."""
        self._console.print(
            f"    [bold]{escape(f'{name:<18}')}[/bold] {algorithm:<13}  epoch {epoch}  "
            f"fingerprint [green]{fingerprint}[/green]"
        )

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """Show an attack while it runs."""
        with self._console.status(f"attack: {escape(name)}"):
            yield

    def refused(self, name: str, tries: str, problem: Problem) -> None:
        """Show an attack that was refused as it must be."""
        reasons = f" ({', '.join(problem.reasons)})" if problem.reasons else ""
        answer = f"[red]refused[/red] {problem.status} {escape(f'{problem.code:<20}')}"
        what = f"[bold]{escape(name)}[/bold]: {escape(tries)}[dim]{escape(reasons)}[/dim]"
        self._console.print(f"  [green]✓[/green] {answer} {what}")

    def not_refused(self, name: str, wanted: str, got: str) -> None:
        """Show, loudly, an attack that was not refused as it must be."""
        self._console.print(
            f"  [bold white on red] ✗ {escape(name)}: expected {escape(wanted)}, got {escape(got)} [/]"
        )

    def failure(self, what: str) -> None:
        """End badly."""
        self._console.print()
        self._console.print(f"[bold white on red] {escape(what)} [/]")

    def success(self, what: str) -> None:
        """End well."""
        self._console.print()
        self._console.print(f"[bold green]{escape(what)}[/bold green]")
