"""What a person looks at: pages, galleries and tables."""
