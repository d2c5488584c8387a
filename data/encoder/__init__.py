"""Examples to packed rows of documents and targets, for models with heads."""
