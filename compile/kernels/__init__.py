"""Loop nests of the fused kernels in TVM's tensor IR, one file for each family of operators."""
