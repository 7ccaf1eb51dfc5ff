"""The ConvNeXt network, its variants, and exact rewrites for deployment."""
