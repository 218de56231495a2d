"""What was answered, what was believed of it, and what is on record about both."""
