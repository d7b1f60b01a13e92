"""What papers that build on DRSN change in it: the threshold rule."""
