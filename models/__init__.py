"""Small architectures of every kind, and a few small trained models, for tests and benches."""
