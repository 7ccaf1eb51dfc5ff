"""The ConvNeXt network, its variants and its checkpoints."""
