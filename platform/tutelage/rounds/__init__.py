"""The loop: ask, check, train, measure, promote; again."""
