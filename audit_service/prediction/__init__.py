"""Predictions without torch: export to ONNX, and ONNX Runtime."""
