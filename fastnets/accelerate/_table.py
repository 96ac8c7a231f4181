"""What accelerate tells of its work: each layer, what runs it, why it stays."""

from __future__ import annotations


class Table:
    """Rows in the order of the network, and notes below them; printing it aligns the columns."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, str, str]] = {}
        self.notes: list[str] = []

    def add(self, layer: str, kind: str, runs: str, note: str = "") -> None:
        """Says what runs a layer of that kind; what was said of it before is replaced."""
        self.rows[layer or "(the model)"] = kind, runs, note

    def __str__(self) -> str:
        lines = [("layer", "was", "runs as", ""), *((layer, *row) for layer, row in self.rows.items())]
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        rows = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, (*widths, 0), strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join(rows + self.notes)
