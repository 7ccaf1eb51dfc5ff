"""A latency in, a network out: how long each hidden width takes, what it loses, and the best choice under a budget."""
