"""A gradient step on the manifold of matrices of rank R, from factors to factors.

For ``W = B A`` and the gradient G of the loss by W, the step is

    W' = the best approximation of rank R of  W - η P(G),
    P(G) = U Uᵀ G + G V Vᵀ - U Uᵀ G V Vᵀ,

where the columns of U and V span those of B and of Aᵀ, and P projects onto the tangent space at W (Vandereycken,
arXiv 1209.3834). Neither W nor G is needed as a whole: the gradients of the factors are ``G Aᵀ`` and ``Bᵀ G``,
which hold ``G V`` and ``Uᵀ G``, all that P(G) is made of; and ``W - η P(G)`` has rank 2R at most, in bases found
by QR of ``O x R`` and ``I x R`` matrices, with a core of ``2R x 2R`` whose SVD is the whole's.

Shape suffixes: I input features, O output features, R rank, D = 2R.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _basis(factor_NR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a factor's columns span, and how to get there.

    Args:
        factor_NR: B or Aᵀ.

    Returns:
        Orthonormal columns ``(N, R)``; ``(R, R)`` coordinates, whose product with the columns is the factor;
        and an ``(R, R)`` matrix that takes ``factor_NR`` to the columns when multiplied from the right.
        Directions in which the factor vanishes to rounding are columns of zeros, so that no division by
        a singular value of zero can fill them with noise: the others are projected as if the rank were less.
    """
    orthonormal_NR, triangle_RR = torch.linalg.qr(factor_NR)
    left_RR, value_R, right_RR = torch.linalg.svd(triangle_RR)
    kept_R = value_R > value_R[0] * max(factor_NR.shape) * torch.finfo(factor_NR.dtype).eps
    inverse_R = torch.where(kept_R, 1 / value_R, 0.0)
    columns_NR = (orthonormal_NR @ left_RR) * kept_R
    return columns_NR, (value_R * kept_R)[:, None] * right_RR, right_RR.T * inverse_R


def riemannian_step(
    B_OR: Tensor, A_RI: Tensor, gradient_B_OR: Tensor, gradient_A_RI: Tensor, lr: float
) -> tuple[Tensor, Tensor]:
    """Move a product of factors along the projected gradient and back to its rank.

    With the true gradients the new product depends on ``B A`` and G alone, not on how the product was split.
    With others in their place, such as Adam's directions, there is no G that belongs to both; where the two say
    different things, about ``Uᵀ G V``, A's is taken, as LORO's released code does.

    Args:
        B_OR: ``(O, R)``.
        A_RI: ``(R, I)``.
        gradient_B_OR: ``G Aᵀ``.
        gradient_A_RI: ``Bᵀ G``.
        lr: η.

    Returns:
        New factors, balanced: each carries the square roots of the product's singular values, so that
        ``BᵀB = A Aᵀ`` is diagonal. Computed in the dtype of the arguments, which float32 suits.
    """
    rank = A_RI.shape[0]
    U_OR, coordinates_B_RR, to_U_RR = _basis(B_OR)
    V_IR, coordinates_A_RR, to_V_RR = _basis(A_RI.T)
    GV_OR = gradient_B_OR @ to_V_RR
    GtU_IR = gradient_A_RI.T @ to_U_RR
    inner_RR = GtU_IR.T @ V_IR  # Uᵀ G V

    # what leaves the spans of U and V, each in an orthonormal basis of its own
    beyond_U_OR, core_U_RR = torch.linalg.qr(GV_OR - U_OR @ (U_OR.T @ GV_OR))
    beyond_V_IR, core_V_RR = torch.linalg.qr(GtU_IR - V_IR @ (V_IR.T @ GtU_IR))

    # W - η P(G) = [U, beyond U] core [V, beyond V]ᵀ
    core_DD = B_OR.new_zeros(2 * rank, 2 * rank)
    core_DD[:rank, :rank] = coordinates_B_RR @ coordinates_A_RR.T - lr * inner_RR
    core_DD[rank:, :rank] = -lr * core_U_RR
    core_DD[:rank, rank:] = -lr * core_V_RR.T
    left_DD, value_D, right_DD = torch.linalg.svd(core_DD)

    root_R = value_D[:rank].sqrt()
    new_B_OR = torch.cat((U_OR, beyond_U_OR), 1) @ (left_DD[:, :rank] * root_R)
    new_A_RI = (root_R[:, None] * right_DD[:rank]) @ torch.cat((V_IR, beyond_V_IR), 1).T
    return new_B_OR, new_A_RI
