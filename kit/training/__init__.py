"""Fine-tune encoders with transformers' Trainer, kit's batches, optimizer groups and callbacks."""
