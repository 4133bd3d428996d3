"""The Render Server's agent: makes datasets for the viewer of volumes and label maps."""
