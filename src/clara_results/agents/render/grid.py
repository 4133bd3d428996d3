"""Where a volume's voxels are."""

import itertools
import math
from dataclasses import dataclass

SAME = 0.1
"""Part of the least spacing within which two grids' corners must be for the grids to be the same."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid of voxels, in DICOM's and ITK's coordinates: millimetres, LPS+ (PS3.3 C.7.6.2.1.1).

    Attributes:
        dims: Voxels along i, j and k.
        spacing: Millimetres between voxels along these.
        origin: Centre of the first voxel.
        direction: Unit vectors along i, j and k as the columns of a matrix, row by row.
    """

    dims: list[int]
    spacing: list[float]
    origin: list[float]
    direction: list[float]

    @property
    def voxels(self) -> int:
        """Return their number."""
        return math.prod(self.dims)

    def point(self, index: tuple[float, ...]) -> list[float]:
        """Return where an index (i, j, k) is."""
        return [
            self.origin[axis]
            + sum(
                self.direction[3 * axis + along] * self.spacing[along] * index[along]
                for along in range(3)
            )
            for axis in range(3)
        ]

    def same(self, other: "Grid") -> bool:
        """Tell whether another grid has its voxels at the same places."""
        if self.dims != other.dims:
            return False
        allowed = SAME * min(self.spacing)
        return all(
            math.dist(self.point(corner), other.point(corner)) <= allowed
            for corner in itertools.product(*[(0.0, size - 1.0) for size in self.dims])
        )
