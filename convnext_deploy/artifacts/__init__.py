"""What flows from stage to stage: a folder with its manifest, its history, its network and its images."""
