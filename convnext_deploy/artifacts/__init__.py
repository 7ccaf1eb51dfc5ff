"""Artifacts, which flow from stage to stage: folder, manifest, lineage, typed details, network and preprocessing."""
