"""Structured pruning: which hidden units of which block matter, and the smaller network that loses least without them."""
