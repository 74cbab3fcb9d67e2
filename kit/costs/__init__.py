"""What a training or a prediction costs, by formulas: steps, operations, hours, disk. No torch."""
