"""Files, processes, devices and progress: what every room needs of the machine."""
