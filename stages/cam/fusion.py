"""Fusion of attention over layers and heads: plainly, with learned weights, or with gates that see the image.

The paper's adaptive fusion feeds the mean of every attention matrix to a gate. Rows sum to one, so that mean is
1/N whatever the image: the gates are constants and the fusion is a plain mean up to a factor. Two ideas survive:
one learned weight per layer and head, and gates computed from what each head *returned* rather than from where it
looked. Either is trained by the tags alone, through the pooled fine map (:class:`FineLogits`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from stages.cam.attention import class_to_patch, patch_to_patch

Fusion = Literal["mean", "learned", "features"]
REDUCTION = 8


class AttentionFusion(nn.Module):
    """Average attention over layers and heads with non-negative weights that sum to one.

    Args:
        layers, heads: How many matrices there are.
        kind: ``mean``, ``learned`` (a softmax weight per layer and head, the same for every image), or
            ``features`` (gates of each image's own head outputs).
        dim: Token width; needed for ``features``.
    """

    def __init__(self, layers: int, heads: int, kind: Fusion = "mean", dim: int = 0) -> None:
        super().__init__()
        self.kind, self.heads = kind, heads
        self.logits_LH = nn.Parameter(torch.zeros(layers, heads)) if kind == "learned" else None
        self.gates = HeadGates(layers * heads, dim // heads) if kind == "features" else None

    @property
    def trainable(self) -> bool:
        """Whether there is anything to learn."""
        return self.kind != "mean"

    def weights(self, outputs_BLND: Tensor) -> Tensor:
        """Weight of every layer and head, ``(B, L, H)``.

        Args:
            outputs_BLND: What each layer's attention added to the tokens.
        """
        batch, layers = outputs_BLND.shape[:2]
        if self.gates is not None:
            strongest = outputs_BLND.amax(dim=2).reshape(batch, layers * self.heads, -1)
            gates: Tensor = self.gates(strongest)
            return (gates / gates.sum(dim=1, keepdim=True)).view(batch, layers, self.heads)
        logits = outputs_BLND.new_zeros(layers, self.heads) if self.logits_LH is None else self.logits_LH
        return logits.flatten().softmax(0).view(1, layers, self.heads).expand(batch, -1, -1)

    def forward(self, attention_BLHNN: Tensor, outputs_BLND: Tensor) -> Tensor:
        """Return [B, N, N]; rows sum to what they summed to before."""
        if not self.trainable:
            return attention_BLHNN.mean(dim=(1, 2))
        return torch.einsum("blhnm,blh->bnm", attention_BLHNN, self.weights(outputs_BLND))


class HeadGates(nn.Module):
    """From a vector per head (its strongest channels over all tokens) to a gate in (0, 1) per head.

    Each head is summed up in one number, then all heads are weighed against one another by a bottleneck, as in
    squeeze-and-excitation.
    """

    def __init__(self, heads: int, channels: int) -> None:
        super().__init__()
        self.summary = nn.Sequential(nn.Linear(channels, REDUCTION), nn.Linear(REDUCTION, 1))
        narrow = max(1, heads // REDUCTION)
        self.excitation = nn.Sequential(
            nn.Linear(heads, narrow, bias=False), nn.ReLU(), nn.Linear(narrow, heads, bias=False)
        )

    def forward(self, vectors_BGc: Tensor) -> Tensor:
        """``(B, G, c)`` to ``(B, G)``."""
        gates: Tensor = self.excitation(self.summary(vectors_BGc).squeeze(-1)).sigmoid()
        return gates


class FineLogits(nn.Module):
    """Class logits from the pooled fine map, so that tags can teach the fusion.

    The map is never negative, and its plain mean can hardly say no; its logarithm can, with a scale and an offset
    of its own. Maps and attention enter detached: nothing but the fusion (and these two numbers) learns here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, fused_BNN: Tensor, coarse_BCHW: Tensor) -> Tensor:
        """Logits ``(B, C)``."""
        classes, grid = coarse_BCHW.shape[1], (coarse_BCHW.shape[2], coarse_BCHW.shape[3])
        cross = class_to_patch(fused_BNN, classes, grid)
        evidence = grid[0] * grid[1] * (cross * coarse_BCHW.detach()).flatten(2)
        fine = torch.einsum("bpq,bkq->bkp", patch_to_patch(fused_BNN, classes), evidence)
        return self.scale * (fine.mean(dim=2) + 1e-4).log() + self.offset
