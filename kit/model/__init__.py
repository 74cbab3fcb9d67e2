"""Define the models: a shared encoder over both answers of a row, pooled, compared, classified."""
