"""Rewrites ONNX models from opset 18 to opset 17.

No library does it. ONNX's version converter has no adapter for ``Pad`` and leaves an attribute in
``ReduceMean`` that opset 17 does not know; onnxscript's converts to newer opsets only.
"""

from collections.abc import Callable

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def convert_to_opset_17(model: ir.Model) -> None:
    """Rewrite every node that opset 18 changed, in subgraphs and functions too.

    Args:
        model: of opset 18; modified in place.

    Raises:
        ValueError: naming the node, if opset 17 cannot express it.
    """
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            if node.domain == "" and _changed_in_18(node.op_type):
                _REWRITES.get(node.op_type, _refuse)(node)
        graph.opset_imports[""] = 17
    RemoveUnusedNodesPass()(model)  # axes that are attributes now
    # Runtimes without opset 18 refuse newer versions of the file format, too.
    imports = [onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()]
    model.ir_version = onnx.helper.find_min_ir_version_for(imports)


def _changed_in_18(op_type: str) -> bool:
    return onnx.defs.get_schema(op_type, 18).since_version == 18


def _refuse(node: ir.Node, reason: str = "") -> None:
    raise ValueError(
        f"opset 17 cannot express {node.op_type} {node.name}{reason}; use opset 18 or newer"
    )


def _reduction(node: ir.Node) -> None:
    """The axes were an attribute, and missing axes always meant all of them."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = ir.convenience.get_const_tensor(node.inputs[1])
        if axes is None:
            _refuse(node, ", whose axes are computed")
        elif axes.size:
            node.attributes["axes"] = ir.AttrInt64s("axes", axes.numpy().tolist())
    without_axes = "axes" not in node.attributes
    if _pop(node, "noop_with_empty_axes") and without_axes:
        _refuse(node, ", which reduces no axes")
    node.resize_inputs(1)


def _pad(node: ir.Node) -> None:
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        _refuse(node, ", which has axes")
    node.resize_inputs(min(3, len(node.inputs)))


def _resize(node: ir.Node) -> None:
    if _pop(node, "antialias"):
        _refuse(node, " with antialias")
    if _pop(node, "keep_aspect_ratio_policy") not in (None, "stretch"):
        _refuse(node, " with keep_aspect_ratio_policy")
    if "axes" in node.attributes:
        _refuse(node, ", which has axes")


def _scatter(node: ir.Node) -> None:
    reduction = node.attributes.get("reduction")
    if reduction is not None and reduction.value not in ("none", "add", "mul"):
        _refuse(node, f" with reduction {reduction.value}")


def _split(node: ir.Node) -> None:
    if "num_outputs" in node.attributes:
        _refuse(node, " with num_outputs")


def _pop(node: ir.Node, name: str) -> int | str | None:
    attribute = node.attributes.pop(name, None)
    return None if attribute is None else attribute.value


_REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"]
_REWRITES: dict[str, Callable[[ir.Node], None]] = {
    **{f"Reduce{name}": _reduction for name in _REDUCTIONS},
    "Pad": _pad,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Split": _split,
}
