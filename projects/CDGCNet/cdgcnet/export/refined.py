"""Networks of :func:`cdgc.refine` in a form that torch.export and torch.onnx.export take."""

import copy

from torch import nn

from cdgc import CDGCModule, RefinedClassifier
from cdgcnet.export.graph import ExportableGraph


def exportable_copy(net: nn.Module) -> nn.Module:
    """A copy of a network for inference whose class graphs can be exported.

    ::

        net = exportable_copy(net.eval())
        torch.onnx.export(net, (images,), "net.onnx", dynamo=True, dynamic_shapes=…)

    Args:
        net: in evaluation mode, with any number of :class:`cdgc.RefinedClassifier` or
            :class:`cdgc.CDGCModule`, or one of these itself.

    Returns:
        The copy; it computes what ``net`` does, up to rounding, and cannot be trained.

    Raises:
        ValueError: if the network has no class graph, is in training mode, or pools large feature
            maps.
    """
    if net.training:
        raise ValueError("the network is in training mode; call net.eval() before exporting it")
    found = copy.deepcopy(net).requires_grad_(False)  # loops are exported for inference only
    if isinstance(found, CDGCModule):
        return ExportableGraph(found).eval()
    graphs = 0
    for name, parent in list(found.named_modules()):
        if isinstance(parent, RefinedClassifier) and parent.max_nodes is not None:
            raise ValueError(
                f"{name or type(parent).__name__} pools feature maps of more than "
                f"max_nodes={parent.max_nodes} nodes, which an exported network cannot do; set "
                "max_nodes of it to None, and the graph computes every node"
            )
        for child_name, child in list(parent.named_children()):
            if isinstance(child, CDGCModule):
                setattr(parent, child_name, ExportableGraph(child).eval())
                graphs += 1
    if not graphs:
        raise ValueError("the network has no class graph; call cdgc.refine before exporting it")
    return found
