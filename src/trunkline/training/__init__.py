"""Training of teachers and students. Serving never imports this package."""
