"""`rdedge bench`: latency as the line feels it, measured on the line's own path, and runs compared."""
