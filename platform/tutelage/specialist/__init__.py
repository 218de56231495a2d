"""The small network that is trained, kept and served."""
