"""Latency in isolated processes whose rounds are interleaved."""
