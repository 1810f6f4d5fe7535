"""Select the rows of a built dataset by license, by type of image, and by figure or panel."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from .panels.image_types import UNKNOWN, parse_image_types
from .pmc.articles import parse_licenses


Panels = Literal["also", "only", "none"]
PANEL_CHOICES = get_args(Panels)
COLUMNS_OF_PANELS = ("image_type", "compound", "figure_pair_id")
_NAMES = {"license": "licenses", "image_type": "types of images", "compound": "rows", "figure_pair_id": "rows"}
_KINDS = {True: "compound figures", False: "panels and single figures", None: "figures not examined"}


@dataclass(frozen=True)
class RowSelection:
    """Which rows of a dataset are read. Values are sorted, so that equal selections have equal hashes in caches.

    Attributes:
        licenses: License codes.
        image_types: Types of images.
        panels: `also` reads figures and panels, `only` panels and single figures, `none` figures. All but None require
            a dataset with panels.
    """

    licenses: tuple[str, ...] | None = None
    image_types: tuple[str, ...] | None = None
    panels: Panels | None = None

    @classmethod
    def of(
        cls,
        licenses: str | Collection[str] | None = None,
        image_types: str | Collection[str] | None = None,
        panels: str | None = None,
    ) -> "RowSelection":
        """Return the selection for arguments of [`load_pmc15m`].

        Raises:
            ValueError: If a license, a type of image or a choice of panels does not exist.
        """
        codes = None if licenses is None else parse_licenses(licenses)
        types = None if image_types is None else parse_image_types(image_types)
        if panels is not None and panels not in PANEL_CHOICES:
            raise ValueError(f"panels must be one of {', '.join(PANEL_CHOICES)}, not {panels!r}.")
        return cls(None if codes is None else tuple(sorted(codes)), types, panels)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return bool(self.columns)

    @property
    def columns(self) -> list[str]:
        """Columns by which rows are selected, none if all rows are."""
        wanted = {
            "license": self.licenses is not None,
            "image_type": self.image_types is not None,
            "compound": self.panels == "only",
            "figure_pair_id": self.panels == "none",
        }
        return [name for name, is_wanted in wanted.items() if is_wanted]

    @property
    def required(self) -> list[str]:
        """Columns that the dataset must have."""
        return [*self.columns, *(["figure_pair_id"] if self.panels == "also" else [])]

    def mask(self, table: pa.Table) -> Any:
        """Return whether each row of a table with the `columns` is selected, as an array of booleans."""
        masks = [pa.chunked_array([pa.array([True] * table.num_rows)])]
        if self.licenses is not None:
            masks.append(pc.is_in(table.column("license"), pa.array(self.licenses, pa.string())))
        if self.image_types is not None:
            masks.append(pc.is_in(table.column("image_type"), pa.array(self.image_types, pa.string())))
        if self.panels == "only":
            masks.append(pc.invert(pc.fill_null(table.column("compound"), False)))
        if self.panels == "none":
            masks.append(pc.is_null(table.column("figure_pair_id")))
        selected = masks[0]
        for mask in masks[1:]:
            selected = pc.and_(selected, mask)
        return selected

    def values(self, table: pa.Table) -> Counter[tuple[str, str]]:
        """Count the values of the columns by which rows are selected, for an error message."""
        found: Counter[tuple[str, str]] = Counter()
        for name in self.columns:
            for value in table.column(name).to_pylist():
                text = UNKNOWN if value is None else str(value)
                if name == "compound":
                    text = _KINDS[value]
                elif name == "figure_pair_id":
                    text = "figures" if value is None else "panels"
                found[name, text] += 1
        return found

    def nothing_found(self, found: Counter[tuple[str, str]]) -> str:
        """Describe the selection, to which no row belongs, and the values that exist."""
        wanted = []
        if self.licenses is not None:
            wanted.append(f"under {', '.join(self.licenses)}")
        if self.image_types is not None:
            wanted.append(f"of the types {', '.join(self.image_types)}")
        if self.panels is not None:
            wanted.append(f"with panels={self.panels!r}")
        there = []
        for column in self.columns:
            counts = [(value, count) for (name, value), count in found.most_common() if name == column]
            listed = ", ".join(f"{value} ({count:,} pairs)" for value, count in counts)
            there.append(f"The {_NAMES[column]} are: {listed}.")
        return f"no pair {' '.join(wanted)}. {' '.join(there)}"
