"""DINO (Zhang et al., ICLR 2023): a deformable transformer whose queries start from the encoder's best cells.

Encoder, decoder layers and noisy queries are the library's (`transformers`); mixed query selection, look-forward-twice
and the heads of every layer are here, since the library has no such model. docs/method.md, section 7.5.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.detectors.detr_losses import LayerOutput, SetOutput, SetTargets
from stages.core.detectors.spec import DetrSpec

IMAGE_TEMPERATURE = 20
"""Of the sine that tells the cells of a map apart; that of the queries' boxes is the usual 10,000."""
CELL_SIDE = 0.05
"""Side of the box that a cell of the finest map stands for, fraction of the image; twice that per level."""
PRIOR = 0.01
"""Class probability of a query before any training."""


@dataclass(frozen=True)
class Memory:
    """The encoder's states of all S cells of L maps, and where they lie.

    Attributes:
        states_BSD: states.
        inside_BS: whether a cell is in the image, not in its padding.
        shapes: (height, width) of each map, finest first.
        shapes_L2: the same as a tensor.
        starts_L: first cell of each map.
        ratios_BL2: part of each map that is image, (width, height).
    """

    states_BSD: Tensor
    inside_BS: Tensor
    shapes: list[tuple[int, int]]
    shapes_L2: Tensor
    starts_L: Tensor
    ratios_BL2: Tensor


class DinoModel(nn.Module):
    """Projections, encoder and decoder layers; `backbone` is put in its place from outside.

    Args:
        config: the library's configuration of a Deformable DETR.
        spec: the detector's.
        channels: of the backbone's maps, finest first; one coarser map is added.
        classes: number of classes.
    """

    def __init__(self, config: Any, spec: DetrSpec, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        library = importlib.import_module("transformers.models.deformable_detr.modeling_deformable_detr")
        width = spec.d_model
        self.backbone: nn.Module = nn.Identity()
        convolutions = [nn.Conv2d(count, width, 1) for count in channels]
        convolutions.append(nn.Conv2d(channels[-1], width, 3, stride=2, padding=1))
        self.input_proj = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(32, width)) for conv in convolutions)
        for conv in convolutions:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.position_embedding = library.DeformableDetrSinePositionEmbedding(
            width // 2, temperature=IMAGE_TEMPERATURE, normalize=True
        )
        self.level_embed = nn.Parameter(torch.randn(len(convolutions), width))
        self.encoder = library.DeformableDetrEncoder(config)
        self.decoder = library.DeformableDetrDecoder(config)
        for name, values in (*self.encoder.named_parameters(), *self.decoder.named_parameters()):
            if values.ndim > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
                nn.init.xavier_uniform_(values)
        self.decoder_norm = nn.LayerNorm(width)
        self.cell_head = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.reference_head = library.DeformableDetrMLPPredictionHead(2 * width, width, width, 2)
        self.query_content = nn.Embedding(spec.num_queries, width)
        self.noisy_content = nn.Embedding(classes + 1, width, padding_idx=classes)

    def encode(self, pixels: Tensor, mask_BHW: Tensor) -> Memory:
        """Encode normalised images (B, 3, H, W); `mask_BHW` is 1 where the image is."""
        maps: list[tuple[Tensor, Tensor]] = self.backbone(pixels, mask_BHW)
        sources = [project(feats) for project, (feats, _) in zip(self.input_proj[:-1], maps, strict=True)]
        insides = [inside for _, inside in maps]
        sources.append(self.input_proj[-1](maps[-1][0]))
        insides.append(F.interpolate(mask_BHW[None].float(), size=sources[-1].shape[-2:])[0].bool())
        positions = [
            self.position_embedding(
                shape=source.shape, device=source.device, dtype=torch.float32, mask=inside
            )
            .flatten(2)
            .transpose(1, 2)
            + level
            for source, inside, level in zip(sources, insides, self.level_embed, strict=True)
        ]
        shapes = [(int(source.shape[-2]), int(source.shape[-1])) for source in sources]
        shapes_L2 = torch.tensor(shapes, device=pixels.device)
        starts_L = torch.cat((shapes_L2.new_zeros(1), shapes_L2.prod(1).cumsum(0)[:-1]))
        inside_BS = torch.cat([inside.flatten(1) for inside in insides], dim=1)
        ratios_BL2 = torch.stack([_inside_ratios(inside) for inside in insides], dim=1)
        states_BSD = self.encoder(
            inputs_embeds=torch.cat([source.flatten(2).transpose(1, 2) for source in sources], dim=1),
            attention_mask=inside_BS,
            spatial_position_embeddings=torch.cat(positions, dim=1),
            spatial_shapes=shapes_L2,
            spatial_shapes_list=shapes,
            level_start_index=starts_L,
            valid_ratios=ratios_BL2,
        ).last_hidden_state
        return Memory(states_BSD, inside_BS, shapes, shapes_L2, starts_L, ratios_BL2)


class DinoNetwork(nn.Module):
    """The transformer with its heads: one pair per decoder layer, and one for the encoder's cells, the last."""

    def __init__(self, config: Any, spec: DetrSpec, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        library = importlib.import_module("transformers.models.deformable_detr.modeling_deformable_detr")
        self.spec, self.classes = spec, classes
        self.model = DinoModel(config, spec, channels, classes)
        width = spec.d_model
        class_head = nn.Linear(width, classes)
        nn.init.constant_(class_head.bias, -math.log((1 - PRIOR) / PRIOR))
        box_head = library.DeformableDetrMLPPredictionHead(width, width, 4, 3)
        nn.init.zeros_(box_head.layers[-1].weight)
        nn.init.zeros_(box_head.layers[-1].bias)
        pairs = spec.num_decoder_layers + 1
        self.class_embed = nn.ModuleList(copy.deepcopy(class_head) for _ in range(pairs))
        self.bbox_embed = nn.ModuleList(copy.deepcopy(box_head) for _ in range(pairs))

    def forward(self, pixels: Tensor, mask_BHW: Tensor, targets: SetTargets | None) -> SetOutput:
        """Outputs of all layers in training, with those of noisy targets; else of the last layer."""
        memory = self.model.encode(pixels, mask_BHW)
        chosen = self._choose(memory)
        contents_BQD = self.model.query_content.weight.expand(len(pixels), -1, -1)
        references_BQ4 = chosen.boxes_BQ4.detach()
        noise = self._noisy_queries(targets)
        if noise is None:
            layers = self._decode(memory, contents_BQD, references_BQ4, None)
            return SetOutput(layers, chosen) if self.training else SetOutput(layers[-1:])
        assert targets is not None
        noisy_BND, noisy_BN4, visible_QQ, facts = noise
        layers = self._decode(
            memory,
            torch.cat([noisy_BND, contents_BQD], dim=1),
            torch.cat([noisy_BN4.sigmoid(), references_BQ4], dim=1),
            visible_QQ,
        )
        count, groups = facts["dn_num_split"][0], int(facts["dn_num_group"])
        restored = [
            (queries, torch.arange(len(target["class_labels"]), device=queries.device).repeat(groups))
            for queries, target in zip(facts["dn_positive_idx"], targets, strict=True)
        ]
        noisy = [LayerOutput(own.logits_BQC[:, :count], own.boxes_BQ4[:, :count]) for own in layers]
        matching = [LayerOutput(own.logits_BQC[:, count:], own.boxes_BQ4[:, count:]) for own in layers]
        return SetOutput(matching, chosen, noisy, restored, groups)

    def _choose(self, memory: Memory) -> LayerOutput:
        """Mixed query selection: the cells of the highest class score give boxes, not contents."""
        anchors_BS4, usable_BS = _cell_boxes(memory)
        states_BSD = self.model.cell_head(memory.states_BSD.masked_fill(~usable_BS[..., None], 0))
        logits_BSC = self.class_embed[-1](states_BSD)
        scores_BS = logits_BSC.detach().float().amax(dim=2).masked_fill(~usable_BS, -torch.inf)
        best_BQ1 = scores_BS.topk(self.spec.num_queries, dim=1).indices[..., None]
        moves_BS4 = self.bbox_embed[-1](states_BSD).float()
        boxes_BS4 = (moves_BS4 + torch.logit(anchors_BS4, eps=1e-5)).sigmoid()
        return LayerOutput(
            logits_BSC.gather(1, best_BQ1.expand(-1, -1, self.classes)),
            boxes_BS4.gather(1, best_BQ1.expand(-1, -1, 4)),
        )

    def _noisy_queries(self, targets: SetTargets | None) -> tuple[Tensor, Tensor, Tensor, Any] | None:
        """Contents, boxes (logits) and bookkeeping of contrastive denoising, and which query may see which.

        Each group has every target once with little and once with much noise: the first is to be restored, the second
        to be rejected. Matching queries see no noisy one.
        """
        if not self.training or targets is None or not self.spec.num_denoising:
            return None
        library = importlib.import_module("transformers.models.rt_detr_v2.modeling_rt_detr_v2")
        contents, boxes, barred, facts = library.get_contrastive_denoising_training_group(
            targets=[dict(target) for target in targets],
            num_classes=self.classes,
            num_queries=self.spec.num_queries,
            class_embed=self.model.noisy_content,
            num_denoising_queries=self.spec.num_denoising,
        )
        return None if contents is None else (contents, boxes, barred == 0, facts)

    def _decode(
        self, memory: Memory, states_BQD: Tensor, references_BQ4: Tensor, visible_QQ: Tensor | None
    ) -> list[LayerOutput]:
        """Refine the boxes layer by layer.

        A layer sees the box before it without gradient. Look-forward-twice: what it predicts is measured from that
        box with its gradient, so that a layer learns from the loss of the next one, too.
        """
        scales_BL4 = torch.cat([memory.ratios_BL2] * 2, dim=-1)
        outputs: list[LayerOutput] = []
        visible = None if visible_QQ is None else visible_QQ[None, None]
        heads = zip(self.model.decoder.layers, self.class_embed, self.bbox_embed, strict=False)
        for layer, class_head, box_head in heads:
            fixed_BQ4 = references_BQ4.detach()
            scaled_BQL4 = fixed_BQ4[:, :, None] * scales_BL4[:, None]
            states_BQD = layer(
                states_BQD,
                self.model.reference_head(box_encoding(scaled_BQL4[:, :, 0], self.spec.d_model // 2)),
                scaled_BQL4,
                memory.shapes_L2,
                memory.shapes,
                memory.starts_L,
                memory.states_BSD,
                memory.inside_BS,
                attention_mask=visible,  # of self-attention alone
            )
            normed_BQD = self.model.decoder_norm(states_BQD)
            start_BQ4 = references_BQ4 if self.spec.look_forward_twice else fixed_BQ4
            outputs.append(LayerOutput(class_head(normed_BQD), _moved(start_BQ4, box_head(normed_BQD))))
            references_BQ4 = _moved(fixed_BQ4, box_head(states_BQD))
        return outputs


def box_encoding(boxes_BQ4: Tensor, channels: int) -> Tensor:
    """Sine encoding [B, Q, 4 channels] of relative boxes, temperature 10,000."""
    steps = torch.arange(channels, device=boxes_BQ4.device, dtype=torch.float32)
    frequencies = 10_000 ** (2 * torch.div(steps, 2, rounding_mode="floor") / channels)
    angles = boxes_BQ4.float()[..., None] * (2 * math.pi) / frequencies
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(2)


def _moved(boxes_BQ4: Tensor, moves_BQ4: Tensor) -> Tensor:
    """Relative boxes moved in the space of their logits, float32."""
    return (torch.logit(boxes_BQ4.float(), eps=1e-5) + moves_BQ4.float()).sigmoid()


def _inside_ratios(inside_BHW: Tensor) -> Tensor:
    """Part of a map's width and height that is image, [B, 2]."""
    height, width = inside_BHW.shape[-2:]
    return torch.stack([inside_BHW[:, 0].sum(1) / width, inside_BHW[:, :, 0].sum(1) / height], dim=-1)


def _cell_boxes(memory: Memory) -> tuple[Tensor, Tensor]:
    """Relative boxes [B, S, 4] around the cells, and which cells can be chosen: those in the image, not at its rim."""
    boxes = []
    for level, (height, width) in enumerate(memory.shapes):
        y, x = torch.meshgrid(
            torch.arange(height, device=memory.ratios_BL2.device) + 0.5,
            torch.arange(width, device=memory.ratios_BL2.device) + 0.5,
            indexing="ij",
        )
        sides_B12 = memory.ratios_BL2[:, level, None] * memory.ratios_BL2.new_tensor((width, height))
        centres_BN2 = torch.stack([x, y], dim=-1).flatten(0, 1)[None] / sides_B12
        boxes.append(torch.cat([centres_BN2, torch.full_like(centres_BN2, CELL_SIDE * 2.0**level)], dim=-1))
    boxes_BS4 = torch.cat(boxes, dim=1)
    return boxes_BS4, memory.inside_BS & ((boxes_BS4 > 0.01) & (boxes_BS4 < 0.99)).all(dim=-1)
