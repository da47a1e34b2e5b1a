"""A second look: the best boxes of the first pass become prompts themselves.

A click leaves open what is meant by it, and the mask it gets may miss a corner of the object. Its box, given back as a
prompt, says how far the object reaches, and the masks it gets lie closer to it (Kirillov et al. 2023, Figure 9, where
more prompts make better masks). The encoding is used once more, so this costs one decoder call per batch of boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from stages.core.segmenters.protocol import EncodedImage, Segmenter
from stages.propose.candidates import Candidates
from stages.propose.config import ProposeConfig
from stages.propose.decoding import BatchSize, decode_candidates
from stages.propose.merging import merge_all, merge_candidates
from stages.propose.prompting import Prompts, box_prompts


def refine(
    segmenter: Segmenter,
    encoded: EncodedImage,
    prompts: Prompts,
    found: Candidates,
    config: ProposeConfig,
    batch_size: BatchSize,
    passes: Callable[[Candidates], Candidates] = lambda candidates: candidates,
) -> tuple[Prompts, Candidates]:
    """Proposals of an image from the candidates of the first pass.

    Args:
        segmenter: Answers the prompts.
        encoded: The image.
        prompts: Those of the first pass.
        found: Their candidates.
        config: Settings of the stage.
        batch_size: Prompts per decoder call.
        passes: Filter of candidates, applied to both passes.

    Returns:
        All prompts, first those of the first pass, and the merged candidates, numbered by them.

    Raises:
        EnvironmentFault: a single prompt does not fit into GPU memory.
    """
    found = passes(found)
    if not config.refine_top_k or not len(found):
        return prompts, merge_candidates(found, config)
    first = config.model_copy(
        update={"union_nms_thresh": config.refine_nms_thresh, "max_proposals": config.refine_top_k}
    )
    asked = box_prompts(merge_candidates(found, first))
    again = passes(decode_candidates(segmenter, encoded, asked, config, batch_size))
    again = replace(again, prompt=again.prompt + len(prompts))
    return Prompts.cat([prompts, asked]), merge_all(again, config)
