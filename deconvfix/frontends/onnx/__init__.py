"""The front end for ONNX models. Nothing here imports torch."""
