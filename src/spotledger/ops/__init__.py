"""What runs the service: its settings, its data folder, and the joining of its parts."""
