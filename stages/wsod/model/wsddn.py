"""Two-stream head of WSDDN: one linear layer scores classes, one scores proposals (Bilen and Vedaldi, CVPR 2016)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class TwoStreamHead(nn.Module):
    """Class stream and detection stream over the same proposal features.

    With `background` both streams get a further column 0 that stands for "no object" (the MIST
    configuration); without it the columns are the C classes (OICR).
    """

    def __init__(
        self, in_features: int, num_classes: int, background: bool = False, init_std: float = 0.01
    ) -> None:
        super().__init__()
        columns = num_classes + int(background)
        self.background = background
        self.cls_stream = nn.Linear(in_features, columns)
        self.det_stream = nn.Linear(in_features, columns)
        for stream in (self.cls_stream, self.det_stream):
            nn.init.normal_(stream.weight, std=init_std)
            nn.init.zeros_(stream.bias)

    def forward(self, feats_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Class and detection logits, both (N, C), or (N, 1 + C) with a background column."""
        return cast(Tensor, self.cls_stream(feats_ND)), cast(Tensor, self.det_stream(feats_ND))
