"""Folders and archives with all that a device needs to build, serve and check a model."""
