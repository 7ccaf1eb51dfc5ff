"""Programs that are copied into every bundle. They use nothing of this package and run on Python 3.8."""
