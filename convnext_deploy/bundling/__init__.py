"""Everything that a device needs to run a model and to prove that it runs right, in one folder."""
