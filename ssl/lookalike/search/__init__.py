"""Images embedded once into an index, and what is said and shown of those nearest to an image."""
