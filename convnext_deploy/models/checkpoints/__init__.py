"""Weights of this and other libraries: read safely, mapped to our names, converted back."""

INDEX = ".index.json"
"""How the name of a file ends that says in which files the weights are."""
