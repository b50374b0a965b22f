"""Other runtimes that ONNX files are deployed in, and what each of them makes of a file."""
