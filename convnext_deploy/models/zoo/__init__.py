"""What is published about every variant, what it costs, and which one suits a data set."""
