"""Write files whole or not at all, and let one process at a time into a folder: `atomic`, `lock`."""
