"""What a volume holds."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import SimpleITK


@dataclass(frozen=True, slots=True)
class Content:
    """What a volume holds.

    Attributes:
        least: The least finite value.
        greatest: The greatest finite value.
        whole: All values are whole numbers.
        finite: All values are finite.
        distinct: How many different values there are; beyond LABELS they are not counted.
    """

    LABELS: ClassVar[int] = 256

    least: float
    greatest: float
    whole: bool
    finite: bool
    distinct: int

    @property
    def labels(self) -> bool:
        """Tell whether it may be a label map: whole numbers from 0, few different ones."""
        few = self.whole and self.finite and self.distinct <= self.LABELS
        return few and self.least >= 0 and self.greatest < 1 << 16


def look(image: SimpleITK.Image) -> Content:
    """Look at all of a volume's values, a slice at a time."""
    least, greatest, whole, finite = np.inf, -np.inf, True, True
    values: set[float] = set()
    for layer in SimpleITK.GetArrayViewFromImage(image):
        known = layer
        if layer.dtype.kind == "f":
            good = np.isfinite(layer)
            if not good.all():
                finite, known = False, layer[good]
            whole = whole and bool((np.rint(known) == known).all())
        if known.size:
            least = min(least, float(known.min()))
            greatest = max(greatest, float(known.max()))
        if whole and least >= 0 and len(values) <= Content.LABELS:
            values.update(np.unique(known).tolist())
    if not np.isfinite(least):
        least = greatest = 0.0
    distinct = len(values) if least >= 0 else Content.LABELS + 1
    return Content(least, greatest, whole, finite, distinct)
