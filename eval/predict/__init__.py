"""New texts are labelled: where they come from, and where their labels go."""
