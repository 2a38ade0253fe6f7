"""What blocks attend to."""
