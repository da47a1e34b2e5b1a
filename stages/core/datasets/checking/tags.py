"""What the tags of a train split can teach: how often each class is shown, and alone, and what they cannot tell."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from stages.core.datasets.split import WeakSplit

FEW_IMAGES = 10
"""Images of a class below which little can be learned of it."""


@dataclass(frozen=True)
class TagStatistics:
    """Counts over the images of a train split.

    Attributes:
        images: Images in all.
        shown: Class -> images that show it.
        alone: Class -> images that show it and no other.
        negatives: Images that are stated to show none of the classes.
        companions: Class -> class that every one of its images shows, too; absent where there is none.
    """

    images: int
    shown: dict[str, int]
    alone: dict[str, int]
    negatives: int
    companions: dict[str, str]

    def summary(self) -> str:
        """One line: "cat 6, dog 7; 2 negatives"."""
        counts = ", ".join(f"{name} {count}" for name, count in self.shown.items())
        return f"{counts}; {self.negatives} negatives" if self.negatives else counts

    def warnings(self) -> list[str]:
        """What tags of this kind cannot teach, and what to do."""
        found = []
        if len(self.shown) == 1 and not self.negatives:
            found.append(
                f"there is one class, '{next(iter(self.shown))}', and no negative: tags cannot tell it from the "
                "background; add images that do not show it"
            )
        for name, count in self.shown.items():
            if not count:
                found.append(f"no image shows '{name}': it cannot be learned")
            elif count == self.images and len(self.shown) > 1:
                found.append(
                    f"every image shows '{name}': tags cannot tell it from the background; add images without it"
                )
            elif name in self.companions:
                found.append(
                    f"every image of '{name}' shows '{self.companions[name]}', too: tags cannot tell them apart; "
                    f"add images of '{name}' alone"
                )
            elif count < FEW_IMAGES:
                found.append(
                    f"only {count} images show '{name}'; tens show whether it works, hundreds are useful"
                )
        return found


def tag_statistics(split: WeakSplit) -> TagStatistics:
    """Count the tags of a train split."""
    shown, alone, pairs = Counter[int](), Counter[int](), Counter[tuple[int, int]]()
    negatives = 0
    for image_id in split.ids:
        tags = split.tags(image_id)
        shown.update(tags)
        negatives += not tags
        if len(tags) == 1:
            alone.update(tags)
        pairs.update((a, b) for a in tags for b in tags if a != b)
    everywhere = {c for c, count in shown.items() if count == len(split.ids)}
    companions: dict[str, str] = {}
    for (a, b), count in sorted(pairs.items()):
        if count == shown[a] and b not in everywhere:
            companions.setdefault(split.classes[a], split.classes[b])
    return TagStatistics(
        images=len(split.ids),
        shown={name: shown[i] for i, name in enumerate(split.classes)},
        alone={name: alone[i] for i, name in enumerate(split.classes)},
        negatives=negatives,
        companions=companions,
    )
