"""What the meta-architecture needs of a head, so that a head of one's own can replace CDGCNet's."""

from typing import Protocol

from torch import Tensor, nn

from cdgcnet.modeling.predictions import HeadOutput


class RefinementHead(Protocol):
    """A head for :class:`CDGCSegmentor`; ``CDGCNetHead`` documents the members."""

    main_feature: str
    align_corners: bool
    ignore_value: int

    def predict_logits(
        self,
        features: dict[str, Tensor],
        targets: Tensor | None = None,
        valid: Tensor | None = None,
        oracle: Tensor | None = None,
    ) -> HeadOutput: ...

    def losses(self, output: HeadOutput, targets: Tensor) -> dict[str, Tensor]: ...


_MEMBERS = ("main_feature", "align_corners", "ignore_value", "predict_logits", "losses")


def check_head(head: nn.Module) -> None:
    """
    Raises:
        ValueError: for a head that lacks a member of :class:`RefinementHead`.
    """
    if missing := [name for name in _MEMBERS if not hasattr(head, name)]:
        raise ValueError(
            "MODEL.META_ARCHITECTURE CDGCSegmentor needs MODEL.SEM_SEG_HEAD.NAME CDGCNetHead, "
            f"or a head with the same interface; {type(head).__name__} has no {', '.join(missing)}"
        )
