"""What papers that build on DRSN change in it: the rule, the pooling, the axis of the channels."""
