"""Pictures of labels, predictions, confusion matrices and the paper's figures."""
