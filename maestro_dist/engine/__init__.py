"""The DeepSpeed engine: settings, step, gradient order, and where each parameter's slices lie."""
