"""The frozen target: K unit vectors whose pairwise cosine is -1/(K-1), a simplex equiangular tight frame.

For comparisons it may also be K orthonormal vectors, which also have equal but smaller angles. The server draws it
once (`draw_frame`), each client checks it on arrival (`Frame.from_tensor`), and heads and losses use it. Must not
know models, methods or the link.

Legend: K vertices (size of the label space), D feature width, B batch.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from fednc.common.errors import ConfigError, ProtocolError
from fednc.common.seeds import generator

TOLERANCE = 1e-5  # on every entry of the Gram matrix; float32 rounding alone stays below 1e-6
SMALLEST_NORM = 1e-6  # a shorter feature has no direction


@dataclass(frozen=True, eq=False)
class Frame:
    """A checked frame.

    The seed only records where the frame came from. It cannot reproduce it: QR gives other bits with another
    thread count or library, so the tensor itself is sent.

    Attributes:
        etf_KD: float32, on the CPU; unit rows with pairwise cosine -1/(K-1).
        seed: the seed it was drawn with.
        digest: sha256 (hex) over the float32 little-endian values and the shape.
    """

    etf_KD: Tensor
    seed: int
    digest: str

    @property
    def vertices(self) -> int:
        """K: number of classes that fit into the frame."""
        return self.etf_KD.shape[0]

    @property
    def dim(self) -> int:
        """D: width of the feature space."""
        return self.etf_KD.shape[1]

    @classmethod
    def without_vertices(cls, dim: int) -> Frame:
        """The empty frame of a task without classes."""
        etf_KD = torch.zeros(0, dim)
        return cls(etf_KD=etf_KD, seed=0, digest=frame_digest(etf_KD))

    @classmethod
    def from_tensor(cls, etf_KD: Tensor, seed: int, digest: str | None = None) -> Frame:
        """The frame in `etf_KD`, after checking that it is one and, if given, that it has this digest.

        Raises:
            ProtocolError: wrong shape or type, rows or angles off by more than `TOLERANCE`, or a wrong digest.
        """
        etf_KD = _checked(etf_KD.detach().cpu())
        found = frame_digest(etf_KD)
        if digest is not None and digest != found:
            raise ProtocolError(
                f"the frame has sha256 {found}, but {digest} was announced: it was changed on the way; start again"
            )
        return cls(etf_KD=etf_KD, seed=seed, digest=found)


def draw_frame(vertices: int, dim: int, seed: int, kind: str = "simplex") -> Frame:
    """A random frame with `vertices` = K vertices in `dim` = D dimensions, uniform over all rotations.

    sqrt(K/(K-1)) Q (I - 11^T/K) in float64, where Q is the sign-fixed QR factor of a Gaussian matrix. A uniform
    matrix would put vertex 0 at cosine -0.8 to the all-ones vector. For D = K-1 a basis of the subspace orthogonal
    to 1 replaces the centring. Vertices may be reserved for later classes, since any subset of rows keeps its
    pairwise cosine -1/(K-1).

    With `kind` "orthogonal" the frame is Q alone: the same draw, neither centred nor rescaled.

    Raises:
        ConfigError: K < 2 or D < K-1 (D < K for an orthogonal one), for which no such frame exists.
    """
    if vertices < 2:
        raise ConfigError(
            f"a frame needs at least 2 vertices, but got {vertices}. Give the run at least two classes."
        )
    needed = vertices if kind == "orthogonal" else vertices - 1
    if dim < needed:
        raise ConfigError(
            f"frame.dim = {dim} is too narrow for {vertices} vertices: they need at least {needed} "
            f"dimensions. Set frame.dim to {needed} or more, or lower frame.vertices."
        )
    if kind == "orthogonal":
        return Frame.from_tensor(_random_orthonormal(dim, vertices, seed).T.contiguous().to(torch.float32), seed)
    basis_KR = _centred_basis(vertices) if dim == vertices - 1 else _centring(vertices)
    turn_DR = _random_orthonormal(dim, basis_KR.shape[1], seed)
    etf_KD = math.sqrt(vertices / (vertices - 1)) * basis_KR @ turn_DR.T
    return Frame.from_tensor(etf_KD.to(torch.float32), seed)


def frame_digest(etf_KD: Tensor) -> str:
    """sha256 (hex) of the float32 little-endian values in row order, then K and D as 64-bit integers."""
    values = etf_KD.contiguous().numpy().astype("<f4").tobytes()
    return hashlib.sha256(values + struct.pack("<qq", *etf_KD.shape)).hexdigest()


def unit(feat_BD: Tensor) -> Tensor:
    """Rows of length 1, in float32 or wider.

    A row shorter than `SMALLEST_NORM` becomes zero and gets a zero gradient. Dividing by a small constant instead
    would keep it finite, but multiply its gradient by a million.
    """
    feat_BD = feat_BD.float() if feat_BD.dtype in (torch.float16, torch.bfloat16) else feat_BD
    norm_B1 = torch.linalg.vector_norm(feat_BD, dim=-1, keepdim=True)
    aimless_B1 = norm_B1 <= SMALLEST_NORM  # False for NaN, which must stay visible
    return torch.where(aimless_B1, 0.0, feat_BD / torch.where(aimless_B1, 1.0, norm_B1))


def _random_orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    gaussian = torch.randn(rows, columns, dtype=torch.float64, generator=generator(seed, "frame"))
    q, r = torch.linalg.qr(gaussian)
    # Without the sign fix, Q is not uniform over rotations and depends on the library's convention.
    columns_up: Tensor = q * torch.where(torch.diagonal(r) < 0, -1.0, 1.0)
    return columns_up


def _centring(vertices: int) -> Tensor:
    return torch.eye(vertices, dtype=torch.float64) - 1.0 / vertices


def _centred_basis(vertices: int) -> Tensor:
    """Its columns are an orthonormal basis of the K-1 dimensions orthogonal to 1 (Helmert's contrasts)."""
    column = torch.arange(1, vertices, dtype=torch.float64)
    basis = torch.triu(torch.ones(vertices, vertices - 1, dtype=torch.float64))
    basis[torch.arange(1, vertices), torch.arange(vertices - 1)] = -column
    return basis / torch.sqrt(column * (column + 1))


def _checked(etf_KD: Tensor) -> Tensor:
    if etf_KD.dim() != 2 or etf_KD.dtype != torch.float32 or etf_KD.shape[0] < 2:
        raise ProtocolError(
            f"a frame is float32 [K >= 2, D], but got {etf_KD.dtype} {list(etf_KD.shape)}. "
            "Update both sides to the same version of fednc."
        )
    vertices = etf_KD.shape[0]
    gram_KK = etf_KD.double() @ etf_KD.double().T
    simplex_KK = _centring(vertices) * (vertices / (vertices - 1))
    errors = [(gram_KK - wanted_KK).abs().max().item() for wanted_KK in (simplex_KK, torch.eye(vertices))]
    if not any(error <= TOLERANCE for error in errors):  # also refuses NaN
        raise ProtocolError(
            f"not a simplex equiangular tight frame: an entry of the Gram matrix is off by {errors[0]:.3g}, "
            f"the limit is {TOLERANCE:g}. Use the frame that the server sent, unchanged."
        )
    return etf_KD
