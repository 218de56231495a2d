"""The same work on Ray. The only room that imports it."""
