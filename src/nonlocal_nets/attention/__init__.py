"""What blocks attend to: captured in a forward pass, asked at points, and drawn."""
