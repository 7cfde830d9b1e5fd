"""What a stream can do: one module per family of operators."""
