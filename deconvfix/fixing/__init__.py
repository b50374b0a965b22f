"""`deconvfix fix`: measures the grid that is seen, and keeps the best candidate that makes nothing worse."""
