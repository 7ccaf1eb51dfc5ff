"""What is copied into a bundle and runs on the device; it needs nothing of this package."""
