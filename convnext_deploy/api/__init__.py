"""The verbs, one file each: open the inputs, build the recipe, run it, return a result."""
