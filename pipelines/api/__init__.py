"""The HTTP front door: the operations, the reads and the edits that the workflows need."""
