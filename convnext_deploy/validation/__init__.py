"""Scores, drops with their intervals, gates and latency: one code path for every runner."""
