"""Fine-tune encoders with transformers' Trainer and kit's own sampler, optimizer groups, schedule and callbacks."""
