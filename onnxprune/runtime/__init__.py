"""Running models: only this package knows ONNX Runtime, and it imports it when first needed."""
