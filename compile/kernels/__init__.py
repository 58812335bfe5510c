"""Loop nests of the fused kernels, written in TVM's tensor IR (TIR), one file for each family of operators."""
