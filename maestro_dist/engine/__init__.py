"""The DeepSpeed engine: settings, optimizer step, check of the gradient order, slices of parameters under ZeRO."""
