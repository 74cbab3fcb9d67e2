"""The comparison: every model, baseline and blend on the very same rows."""
