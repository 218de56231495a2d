"""What one worker does with one case: the crafts joined, without knowing where workers run."""
