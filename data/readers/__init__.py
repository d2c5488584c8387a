"""Read raw releases and users' own files into examples: one module per format."""
