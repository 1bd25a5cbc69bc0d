"""The rows of the table: the values of all rounds, of the library and of a peer, and whether they meet the target."""

import dataclasses
import statistics


@dataclasses.dataclass
class Row:
    """A figure. `ours` and `peer` have a value for each round; their median counts. Lower is better, unless
    `at_least` is given.
    """

    figure: str
    unit: str = ""
    ours: list = dataclasses.field(default_factory=list)
    beside: str = ""  # name of the peer
    peer: list = dataclasses.field(default_factory=list)
    at_most: float | None = None
    at_least: float | None = None
    part: float | None = None  # at most so many times the peer
    target: str = ""
    missing: str = ""  # why it was not measured

    @property
    def value(self):
        return statistics.median(self.ours) if self.ours else None

    @property
    def peer_value(self):
        return statistics.median(self.peer) if self.peer else None

    @property
    def ratio(self):
        if self.value is None or not self.peer_value or self.peer_value < 0:
            return None
        return self.value / self.peer_value

    @property
    def met(self):
        """None without a target, or a value."""
        if self.value is None or not self.target:
            return None
        met = True
        if self.at_most is not None:
            met &= self.value <= self.at_most
        if self.at_least is not None:
            met &= self.value >= self.at_least
        if self.part is not None:
            if self.peer_value is None:
                return None
            met &= self.value <= self.part * self.peer_value
        return met

    def cells(self):
        """figure, ours, peer, ratio, target, met, spread"""
        if self.missing:
            return [self.figure, "missing", self.beside, "", self.target, "", self.missing]
        peer = f"{amount(self.peer_value)} {self.unit}".strip() + f" ({self.beside})" if self.peer else ""
        return [
            self.figure,
            f"{amount(self.value)} {self.unit}".strip(),
            peer,
            fraction(self.ratio),
            self.target,
            {True: "yes", False: "no", None: ""}[self.met],
            spread(self.ours),
        ]

    def as_json(self):
        return {
            **dataclasses.asdict(self),
            "value": self.value,
            "peer_value": self.peer_value,
            "ratio": self.ratio,
            "met": self.met,
        }


HEADINGS = ("figure", "ours", "peer", "ratio", "target", "met", "spread of ours")


def amount(value):
    """A number with three digits, or all of them before the point."""
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def fraction(ratio):
    if ratio is None:
        return ""
    if ratio <= 0:
        return "< 0" if ratio < 0 else "0"
    if 0 < ratio < 1:
        return f"1/{amount(1 / ratio)}"
    return amount(ratio)


def spread(values):
    if len(values) < 2:
        return ""
    return f"{amount(min(values))} to {amount(max(values))}"


def table(rows):
    """Lines of text, in columns."""
    cells = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]


def markdown(rows):
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(row.cells() for row in rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
