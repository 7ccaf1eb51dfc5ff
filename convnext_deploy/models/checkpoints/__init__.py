"""Weights of this and other libraries: read safely, mapped to our names, converted back."""
