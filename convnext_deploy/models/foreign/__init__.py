"""Networks of other libraries, which teach: built by their own library, with weights that are read without running anything."""
