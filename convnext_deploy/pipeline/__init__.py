"""A recipe from start to end: order, cache, resume, validation and report."""
