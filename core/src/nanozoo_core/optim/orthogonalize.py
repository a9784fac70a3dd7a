"""The nearest semi-orthogonal matrix, approximately, by a fixed number of matrix products.

B matrices of m x n. Each step applies an odd polynomial p(t) = a t + b t^3 + c t^5 to every
singular value and leaves the singular vectors alone.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nanozoo_core.machine.precision import wide_dtype
from nanozoo_core.ops.symmetric_matmul import poly2, syrk

Method = Literal["polar_express", "ns5", "exact"]
Coefficients = tuple[tuple[float, float, float], ...]

COEFFICIENTS: dict[str, Coefficients] = {
    # Polar Express (arXiv 2505.16932), solved for exactly these five steps with safety 0.02:
    # the first of them alone are not a shorter schedule. [1e-3, 1] goes to [0.859, 1.142].
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    # Jordan et al. 2024, kellerjordan.github.io/posts/muon. [2e-3, 1] goes to [0.682, 1.203].
    "ns5": ((3.4445, -4.7750, 2.0315),) * 5,
    # Converges to 1 exactly: where steps count and seconds do not. [1e-2, 1] goes to [0.99, 1.01].
    "exact": ((2.0, -1.5, 0.5),) * 12,
}
# Divides the input too: Polar Express keeps the largest singular value off the end of its interval.
SAFETY = {"polar_express": 1.02, "ns5": 1.0, "exact": 1.0}


def orthogonalize(
    g: Tensor,
    *,
    method: Method = "polar_express",
    dtype: torch.dtype = torch.float32,
    eps: float = 1e-12,
) -> Tensor:
    """Replaces every singular value of each matrix by about 1.

    Args:
        g: (..., m, n). A zero matrix stays zero.
        dtype: of the iteration; the norm is taken in float32 (float64 for float64 input).
        eps: added to the Frobenius norm.

    Returns: (..., m, n) in `dtype`.
    """
    m, n = g.shape[-2:]
    x = g.mT if m > n else g  # the Gram matrix of the shorter side is the smaller one
    x = x.to(wide_dtype(g))
    x = x.reshape(-1, min(m, n), max(m, n)).contiguous()  # (B, m, n), m <= n from here on
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x = (x / (norm * SAFETY[method] + eps)).to(dtype)
    for a, b, c in COEFFICIENTS[method]:
        polynomial = poly2(syrk(x), b, c)  # b X X^T + c (X X^T)^2, (B, m, m)
        if x.dtype == torch.bfloat16:  # a, about 8, would round away b and c
            x = torch.baddbmm(x, polynomial, x, beta=a)
        else:  # a x in the same product, without a copy of x
            polynomial.diagonal(dim1=1, dim2=2).add_(a)
            x = torch.bmm(polynomial, x)
    x = x.reshape(*g.shape[:-2], min(m, n), max(m, n))
    return x.mT.contiguous() if m > n else x
