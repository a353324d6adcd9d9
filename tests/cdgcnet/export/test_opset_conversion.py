"""Opset 18 to 17: what has an equivalent is rewritten, everything else is refused by name."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
ir = pytest.importorskip("onnx_ir", reason="needs the extra [export]")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from cdgcnet.export.opset_conversion import convert_to_opset_17  # noqa: E402

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
CONSTANTS = "<int64[2] axes = {0, 2}, int64[0] none = {}, int64[6] pads = {0, 0, 1, 0, 2, 0}, \
int64[1] one = {1}, int64[3] size = {2, 6, 8}, int64[1, 2] at = {1, 2}, float[1, 4] row = \
{1, 2, 3, 4}, int64[1, 1, 1] index = {1}, float[1, 1, 1] value = {5}, int64[2] parts = {1, 2}, \
bool yes = {1}>"


def model_of(nodes):
    """A model of opset 18 in ONNX's text format, from x (2, 3, 4) to y."""
    return onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 18]> test (float[2, 3, 4] x) => (float[a, b, c] y) '
        f"{CONSTANTS} {{ {nodes} }}"
    )


def converted(model):
    found = ir.from_proto(model)
    convert_to_opset_17(found)
    return ir.to_proto(found)


@pytest.mark.parametrize(
    "nodes",
    [
        "y = ReduceMean (x, axes)",
        "y = ReduceMax (x)",
        "y = ReduceMin (x, none)",
        "y = ReduceMean <noop_with_empty_axes = 1> (x, axes)",
        'y = Pad <mode = "constant"> (x, pads)',
        'y = Resize <mode = "linear", antialias = 0, keep_aspect_ratio_policy = "stretch"> '
        "(x, , , size)",
        'y = ScatterND <reduction = "add"> (x, at, row)',
        "y = ScatterElements <axis = 2> (x, index, value)",
        "a, y = Split <axis = 1> (x, parts)",
        "y = If (yes) <then_branch = then () => (float[a, b, c] z) { z = ReduceMean (x, axes) }, "
        "else_branch = otherwise () => (float[a, b, c] w) { w = Identity (x) }>",
        "y = Softmax <axis = 1> (x)",  # which opset 18 did not change
    ],
)
def test_the_result_is_the_same(nodes):
    before = model_of(nodes)
    after = converted(before)
    onnx.checker.check_model(after, full_check=True)
    assert (after.opset_import[0].version, after.ir_version) == (17, 8)
    results = [ReferenceEvaluator(model).run(None, {"x": X})[0] for model in (before, after)]
    np.testing.assert_array_equal(*results)


def test_axes_become_an_attribute():
    after = converted(model_of("y = ReduceMean (x, axes)"))
    (node,) = after.graph.node
    assert list(node.input) == ["x"]
    assert {a.name: list(a.ints) for a in node.attribute} == {"axes": [0, 2]}
    assert not after.graph.initializer


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("a = Identity (one) y = ReduceMean (x, a)", "ReduceMean .* axes are computed"),
        ("y = ReduceMax <noop_with_empty_axes = 1> (x)", "ReduceMax .* reduces no axes"),
        ("y = Pad (x, at, , one)", "Pad .* has axes"),
        ('y = Resize <mode = "linear", antialias = 1> (x, , , size)', "Resize .* antialias"),
        (
            'y = Resize <keep_aspect_ratio_policy = "not_larger"> (x, , , size)',
            "Resize .* keep_aspect_ratio_policy",
        ),
        ("y = Resize <axes = [0, 1, 2]> (x, , , size)", "Resize .* has axes"),
        ('y = ScatterND <reduction = "max"> (x, at, row)', "ScatterND .* reduction max"),
        ("a, y = Split <axis = 1, num_outputs = 2> (x)", "Split .* num_outputs"),
        ("y = Mish (x)", "Mish"),
        ("y = LpPool <kernel_shape = [2]> (x)", "LpPool"),
    ],
)
def test_what_opset_17_lacks_is_refused(nodes, message):
    with pytest.raises(ValueError, match=f"opset 17 cannot express {message}"):
        converted(model_of(nodes))
