"""Export of trained networks to ONNX and to ``torch.export`` archives (pt2)."""
