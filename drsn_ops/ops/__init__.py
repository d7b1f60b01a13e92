"""The machinery between the functions that users call and the compiled kernels."""
