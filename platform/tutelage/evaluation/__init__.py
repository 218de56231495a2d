"""How good a specialist is, whether it takes the champion's place, and the page that tells."""
