"""A balanced choice of codes: each vector takes one, and all codes are taken about equally often (Sinkhorn-Knopp)."""

import torch
from torch import Tensor


def balanced_ids(logits: Tensor, *, steps: int = 5) -> Tensor:
    """`n k` likings of vectors for codes -> `n`: the likeliest code of each under equal shares (Cuturi 2013).

    `steps` alternate between equal shares of the codes and one code for each vector; few steps balance roughly.
    """
    plan = logits.float()
    for _ in range(steps):
        plan = plan - torch.logsumexp(plan, dim=0, keepdim=True)
        plan = plan - torch.logsumexp(plan, dim=1, keepdim=True)
    return plan.argmax(dim=1)
