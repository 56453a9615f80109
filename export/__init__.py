"""Student checkpoint in, GGUF and ONNX files out: convert and quantize."""
