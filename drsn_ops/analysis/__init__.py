"""What shrinkage blocks compute: checked against the definition, and inspected on an input."""
