"""The craft: alignment, quality, similarity, clustering, assignment, metrics; numpy in, numpy out."""
