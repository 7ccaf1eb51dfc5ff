"""Runs in a browser on this machine: what lies in their folders, while they train and afterwards. Nothing is written."""
