"""Tables and lines that fit the terminal's width: columns are left out and cells cut by it, and a note says which."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

UNCUT = 10_000
"""The width of a console with --wide, or off a terminal: nothing is cut."""
_GAP = 2
SHORT_ID = 14
"""Characters of an id where the width does not suffice for all: its prefix and its time."""
Cell = str | Text
Cells = list[list[Text]]


class Column(NamedTuple):
    """`rank` says what goes first where the width does not suffice: the highest; 0 never goes. A cell may be cut to
    `floor` characters, 0: not at all. `ids` are cut to the shortest beginning that tells them apart."""

    name: str
    rank: int = 0
    floor: int = 0
    right: bool = False
    ids: bool = False


class Listing:
    """A table. Its strings are data: nothing in them is markup."""

    def __init__(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
        self._columns = columns
        self._rows: Cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns, rows = list(self._columns), self._rows
        cut: list[str] = []
        if _total(columns, rows) > options.max_width:
            columns, rows, left_out = _choose(columns, rows, options.max_width)
            widths = _squeeze(columns, rows, options.max_width)
            cut = [
                c.name for c, width, most in zip(columns, widths, _widths(columns, rows), strict=True) if width < most
            ]
        else:
            widths, left_out = _widths(columns, rows), []
        yield _line([Text(column.name, "bold") for column in columns], columns, widths)
        for row in rows:
            yield _line(row, columns, widths)
        if note := _note(cut, left_out):
            yield note.wrap(console, options.max_width)


class FittedLine:
    """One line: `flexible` is cut where the width does not suffice, `tail` left out where too little would be left."""

    _LEAST = 24

    def __init__(self, head: Text, flexible: Text, tail: Text) -> None:
        self._head, self._flexible, self._tail = head, flexible, tail

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        flexible, tail = self._flexible.copy(), self._tail
        width_left = options.max_width - self._head.cell_len
        if width_left - tail.cell_len < min(self._LEAST, flexible.cell_len):
            tail = Text()
        flexible.truncate(max(width_left - tail.cell_len, 1), overflow="ellipsis")
        yield Text.assemble(self._head, flexible, tail)


def shorten_ids(ids: Sequence[str], least: int = SHORT_ID) -> list[str]:
    """The beginning of each id that tells it apart from the others, of at least so many characters."""
    size = least
    while size < max(map(len, ids), default=0) and len({id[:size] for id in ids}) < len(set(ids)):
        size += 1
    return [id[:size] for id in ids]


def _widths(columns: Sequence[Column], rows: Cells) -> list[int]:
    return [max([len(c.name), *(row[index].cell_len for row in rows)]) for index, c in enumerate(columns)]


def _total(columns: Sequence[Column], rows: Cells) -> int:
    return sum(_widths(columns, rows)) + _GAP * (len(columns) - 1)


def _least(columns: Sequence[Column], rows: Cells) -> int:
    widths = _widths(columns, rows)
    floors = [min(width, c.floor) if c.floor else width for c, width in zip(columns, widths, strict=True)]
    return sum(floors) + _GAP * (len(columns) - 1)


def _choose(columns: list[Column], rows: Cells, width: int) -> tuple[list[Column], Cells, list[str]]:
    """The columns that fit with their cells cut, and the names of those that do not."""
    rows = _with_short_ids(columns, rows)
    left_out: list[str] = []
    while _least(columns, rows) > width and max(column.rank for column in columns) > 0:
        worst = max(range(len(columns)), key=lambda index: columns[index].rank)
        left_out.append(columns[worst].name)
        columns = columns[:worst] + columns[worst + 1 :]
        rows = [row[:worst] + row[worst + 1 :] for row in rows]
    return columns, rows, left_out


def _with_short_ids(columns: Sequence[Column], rows: Cells) -> Cells:
    rows = [list(row) for row in rows]
    for index, column in enumerate(columns):
        if column.ids:
            for row, short in zip(rows, shorten_ids([row[index].plain for row in rows]), strict=True):
                row[index] = Text(short, row[index].style)
    return rows


def _squeeze(columns: Sequence[Column], rows: Cells, width: int) -> list[int]:
    """Widths that fit: the widest of the cells that may be cut gives way first."""
    widths = _widths(columns, rows)
    excess = sum(widths) + _GAP * (len(columns) - 1) - width
    while excess > 0:
        soft = [index for index, column in enumerate(columns) if column.floor and widths[index] > column.floor]
        if not soft:
            break
        widths[max(soft, key=lambda index: widths[index])] -= 1
        excess -= 1
    return widths


def _line(cells: Sequence[Text], columns: Sequence[Column], widths: Sequence[int]) -> Text:
    line = Text(no_wrap=True)
    for index, (cell, column, width) in enumerate(zip(cells, columns, widths, strict=True)):
        text = cell.copy()
        if text.cell_len > width:
            text.truncate(width, overflow="ellipsis")
        space = " " * (width - cell_len(text.plain))
        line.append(" " * _GAP if index else "")
        line.append(Text.assemble(space, text) if column.right else Text.assemble(text, space))
    line.rstrip()
    return line


def _note(cut: Sequence[str], left_out: Sequence[str]) -> Text | None:
    parts = [f"cut: {', '.join(cut)}"] if cut else []
    parts += [f"left out: {', '.join(reversed(left_out))}"] if left_out else []
    return Text(f"{'; '.join(parts)}. See all with --wide or --json.", "dim") if parts else None
