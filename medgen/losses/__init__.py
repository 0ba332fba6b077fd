"""One idea a file: tensors in, a scalar out."""
