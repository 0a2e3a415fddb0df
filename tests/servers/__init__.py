"""The servers that tests need: found, installed where that may be done, started, and never left behind."""
