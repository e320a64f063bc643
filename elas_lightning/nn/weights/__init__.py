"""What becomes of the weights of linear layers: sparse, sparse plus low rank, merged, or decomposed at the end."""
