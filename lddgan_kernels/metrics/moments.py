"""Mean and covariance of features that come in batches, in float64."""

import torch
from torch import Tensor

from lddgan_kernels._checks import check_tensor, fail


class Moments:
    """Moments of rows (N, D), merged as Chan, Golub and LeVeque 1979 do: nothing is squared but
    differences from a mean, so a large mean costs no digits.

    Order and size of batches change the result within float64 rounding only.

    Args:
        features: D.
    """

    def __init__(self, features: int) -> None:
        self.count = 0
        self.mean = torch.zeros(features, dtype=torch.float64)
        self.scatter = torch.zeros(features, features, dtype=torch.float64)
        """The sum of the outer products of the rows' differences from the mean."""

    def add(self, rows: Tensor) -> None:
        """Takes rows (N, D) of any floating dtype, from any device; N may be 0."""
        check_tensor("Moments", "rows", rows)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise fail("Moments", "rows", f"(N, {len(self.mean)})", tuple(rows.shape))
        if len(rows) == 0:
            return
        x = rows.detach().cpu().double()
        if not x.isfinite().all():
            raise fail("Moments", "rows", "finite", "inf or NaN")
        mean = x.mean(0)
        self._merge(len(x), mean, (x - mean).T @ (x - mean))

    def merge(self, other: "Moments") -> None:
        """Takes all that `other` took."""
        if other.mean.shape != self.mean.shape:
            raise fail("Moments", "other", f"of {len(self.mean)} features", len(other.mean))
        self._merge(other.count, other.mean, other.scatter)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        if total == 0:
            return
        step = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(step, step, alpha=self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    def statistics(self) -> tuple[Tensor, Tensor]:
        """(mu (D,), sigma (D, D)), sigma the unbiased covariance; of at least two rows."""
        if self.count < 2:
            raise fail("Moments", "rows", "at least 2 in all", self.count)
        return self.mean, self.scatter / (self.count - 1)
