"""The projection to the frame in closed form, from class means and the metric within classes alone.

Called by classifiers with the class memory of a round (`method.projection = "fitted"`). Must not know where the
memory comes from.

Legend: K label space, D width of the frame, W width of the memory, C classes that have been seen.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fitted_projection(mean_KW: Tensor, seen_K: Tensor, metric_WW: Tensor, etf_KD: Tensor) -> Tensor:
    """float32 P [D, W] that minimises E |P h - m_y|^2 over features h, if all seen classes are equally frequent.

    m_y is the vertex of the label. With class means v_c and covariance S within classes, P is the mean of the
    m_c v_c^T times the inverse of S + mean of v_c v_c^T. The metric is an inverse of S that is shrunk for few
    examples, so this is ridge regression with a strength that follows from the data. There is no intercept.
    """
    mean_CW, vertex_CD, metric = mean_KW[seen_K].double(), etf_KD[seen_K].double(), metric_WW.double()
    axis_CW = mean_CW @ metric
    # (S + V'V/C)^-1 V' = A V' (I + V A V'/C)^-1 for A = S^-1: only C equations have to be solved.
    inner_CC = len(mean_CW) * torch.eye(len(mean_CW), dtype=torch.float64) + mean_CW @ axis_CW.T
    fitted_DW: Tensor = vertex_CD.T @ torch.linalg.solve(inner_CC, axis_CW)
    return fitted_DW.float()
