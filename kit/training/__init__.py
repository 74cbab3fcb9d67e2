"""Fine-tuning: transformers' Trainer with kit's own sampler, optimizer groups, schedule and callbacks."""
