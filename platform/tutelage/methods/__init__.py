"""How a specialist learns: one file per method, one loop for all."""
