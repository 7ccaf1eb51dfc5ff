"""Statistics of accuracies and times: numbers in, numbers out."""
