"""What `doctor` examines: packages, the machine, and which features work here."""
