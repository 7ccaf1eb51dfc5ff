"""What this machine has, what is installed on it, and which features work here."""
