"""The models: a shared encoder over both sides of a pair, pooled and compared. Models return logits."""
