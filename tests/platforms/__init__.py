"""What other systems than Linux lack is taken away, and everything works all the same."""
