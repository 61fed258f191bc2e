"""How a command prints a table: never a cell cut short, since that tells a number wrong."""

from rich.console import Console, RenderableType
from rich.table import Table

UNLIMITED = 1000  # characters


def print_whole(table: Table, *notes: RenderableType) -> None:
    """Print with all the room that the table needs, even where the terminal wraps it; the notes below it."""
    needed = Console(width=UNLIMITED).measure(table).maximum
    console = Console(width=max(Console().width, needed))
    for part in (table, *notes):
        console.print(part, highlight=False)
