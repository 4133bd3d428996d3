"""What ``clara-results pipeline run`` costs beside the operators' own time."""
