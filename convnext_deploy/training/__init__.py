"""The one training loop, its losses, its state on disk, and teachers."""
